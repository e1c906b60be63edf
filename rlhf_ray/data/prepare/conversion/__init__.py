"""Conversion of a source's rows to samples, and of samples to another kind."""
