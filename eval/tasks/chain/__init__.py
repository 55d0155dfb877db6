"""A chain of assignments that is followed step by step: a task of long answers."""
