"""The answers of a run: read within bounds, measured, and chosen to be shown."""
