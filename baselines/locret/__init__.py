"""Locret: retaining heads, their training, and the eviction by what they score."""
