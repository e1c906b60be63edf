"""Weights of a sharded model: by name, frozen, with adapters, and as an EMA."""
