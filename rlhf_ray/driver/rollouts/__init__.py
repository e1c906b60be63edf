"""Rollouts: prompts, requests in flight, batches, failures."""
