"""What the user sees and what a run leaves behind."""
