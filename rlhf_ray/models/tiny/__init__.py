"""The tiny models made on the spot."""
