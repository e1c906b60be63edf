"""Dataclasses of the configuration groups."""
