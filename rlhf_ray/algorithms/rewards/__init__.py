"""Rewards per token and per task."""
