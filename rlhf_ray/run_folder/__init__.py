"""The output folder of a run: whether it can be written, who writes it, and what it holds."""
