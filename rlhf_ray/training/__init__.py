"""Training and scoring on DeepSpeed ranks: engine, forward passes, weights, roles."""
