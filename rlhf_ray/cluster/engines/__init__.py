"""The engines of a run: their group, and new ones in the place of lost ones."""
