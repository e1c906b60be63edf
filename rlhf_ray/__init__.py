"""Reinforcement learning from human feedback for language models on Ray."""
