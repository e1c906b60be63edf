"""A chat with one model, or with two side by side, in a terminal."""
