"""Prompts: loading, order, curriculum, the resumable stream."""
