"""Chat in a terminal with one model, or with two side by side."""
