"""Smaller forms of a model, and what they cost."""
