"""The engine: a method is a cache layer. Nothing is imported here, so that what needs no model starts at once."""
