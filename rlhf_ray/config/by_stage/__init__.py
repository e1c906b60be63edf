"""Defaults that depend on the stage."""
