"""The workers of a stage, started together."""
