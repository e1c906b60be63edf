"""The loop of the stages that learn from examples, and its parts."""
