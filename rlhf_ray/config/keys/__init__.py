"""Keys of a request: which stage reads which, and what is meant by names that are not keys."""
