"""Folders of other harnesses: read, scored with ours, and written."""
