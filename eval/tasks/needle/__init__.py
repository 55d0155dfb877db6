"""A fact at every depth of texts of every length."""
