"""What measures an engine: answers, likelihoods, times, the atlas, the self-check."""
