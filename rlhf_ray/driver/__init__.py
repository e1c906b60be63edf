"""The loop and its parts: everything that one process decides for all workers. Knows no Ray."""
