"""Measurement of models on held-out prompts, and comparison of models with each other."""
