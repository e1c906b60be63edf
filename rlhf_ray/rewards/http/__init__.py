"""Scores of a service over HTTP as a part of the reward."""
