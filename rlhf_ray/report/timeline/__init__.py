"""The times of a run's workers: for its report, and as a trace for Perfetto."""
