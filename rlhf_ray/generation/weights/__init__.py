"""Weights on their way into the engine."""
