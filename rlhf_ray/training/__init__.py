"""Learner, critic and reference on DeepSpeed."""
