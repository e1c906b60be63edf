"""DeepSpeed's own settings: those with a key here, and those that are passed on."""
