"""Weights from the learner to the engines, and the proof that they arrived."""
