"""Alarms about a run."""
