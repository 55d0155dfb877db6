"""Questions about one text, asked one after the other on one compressed cache."""
