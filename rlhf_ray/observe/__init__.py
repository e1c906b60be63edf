"""Progress display, metrics, logs and summaries of a run."""
