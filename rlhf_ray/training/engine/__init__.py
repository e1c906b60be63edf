"""The DeepSpeed engine: its configuration, its schedule, its ranks, its checkpoints."""
