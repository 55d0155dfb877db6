"""What Weights & Biases gets."""
