"""Steps behind the prompt, as far as they are not what a layer does operation by operation."""
