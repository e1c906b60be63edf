"""Small tasks made by code: their rows, a model for them, and what a good answer is."""
