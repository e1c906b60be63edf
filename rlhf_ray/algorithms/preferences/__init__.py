"""Losses on preferences and reward-model losses, one idea per file."""
