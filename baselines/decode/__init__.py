"""Methods that go on evicting with every token, or every few."""
