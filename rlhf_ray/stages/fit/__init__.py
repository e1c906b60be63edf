"""The stages that learn from examples."""
