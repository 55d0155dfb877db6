"""The engine: a method is a cache layer. Nothing is imported here, so that a command that needs no model starts at once."""
