"""Sources of rows: files, the `datasets` library, Python iterables, and prepared sets."""
