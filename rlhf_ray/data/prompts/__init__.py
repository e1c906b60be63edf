"""Prompts: loading from rows, order, curriculum, and the resumable stream."""
