"""Rules of the life of workers."""
