"""The loop and its parts: all decisions that one process takes for all workers. Knows no Ray."""
