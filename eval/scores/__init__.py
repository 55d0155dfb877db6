"""Rows to scores, readings, means and intervals."""
