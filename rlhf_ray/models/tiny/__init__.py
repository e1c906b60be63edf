"""Tiny built-in models, made on the CPU when first used."""
