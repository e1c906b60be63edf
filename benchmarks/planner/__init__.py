"""Published runs against which the planner is calibrated and checked."""
