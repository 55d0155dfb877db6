"""Models and text: loading, outlines without weights, what is refused, random models, prompts."""
