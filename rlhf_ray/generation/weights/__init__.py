"""Weights from the learner into the engine: the engine's side of a publish."""
