"""Fakes and small builders, for this project's tests and for those of its users."""
