"""What models are worth: measured on held-out prompts, and compared with each other."""
