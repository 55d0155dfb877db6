"""What may hold beside one budget of slots: intervals, and slots set apart."""
