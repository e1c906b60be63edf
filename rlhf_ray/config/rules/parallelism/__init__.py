"""Rules of ranks that hold one model together."""
