"""Several instructions in one prompt: which of them an eviction forgets."""
