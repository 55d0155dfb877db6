"""Perplexity with the eviction live."""
