"""The state of a trained module in a checkpoint: its parts, their files, frozen weights."""
