"""The roles that hold a model on DeepSpeed ranks, as plain classes."""
