"""Bytes that a run keeps outside its workers: checkpoints, models, snapshots."""
