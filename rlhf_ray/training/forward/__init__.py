"""Forward passes: modules, output heads, log-probabilities and values of tokens."""
