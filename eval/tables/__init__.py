"""Scores side by side, beside published numbers."""
