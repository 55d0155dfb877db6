"""Who runs what, and when: a cell, a sweep, a job."""
