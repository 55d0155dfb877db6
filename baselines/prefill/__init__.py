"""Methods that score what the prompt left and evict once."""
