"""What the user typed: words, configs, and the objects that they name."""
