"""Experience from scored rollouts: shaped rewards, advantages, off-policy correction."""
