"""Samples on the terminal: answers of a step, an example and what is learnt of it."""
