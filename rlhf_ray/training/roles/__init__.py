"""Roles that hold a model on DeepSpeed ranks, as plain classes without Ray."""
