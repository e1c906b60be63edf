"""`rlhf-ray doctor`: what this machine has, and what will hurt a run. Starts nothing."""
