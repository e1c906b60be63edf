"""Compressed forms of a model, and measurements of what they gain and lose."""
