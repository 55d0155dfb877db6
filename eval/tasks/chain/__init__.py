"""Chains of assignments that are followed step by step: a task of long answers."""
