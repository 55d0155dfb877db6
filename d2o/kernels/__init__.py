"""Attention and its statistics as functions of tensors: what a layer calls."""
