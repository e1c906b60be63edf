"""Models whose weights are not read from files: random ones, and small copies for a trial."""
