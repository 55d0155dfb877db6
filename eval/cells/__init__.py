"""What lies on the disk: cells, their rows, their status, and what made them."""
