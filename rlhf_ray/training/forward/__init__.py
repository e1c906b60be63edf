"""Forward passes: modules, heads, log-probabilities of tokens."""
