"""The Python side of conf/recipe/*.yaml: rows made by code, vocabularies and reward functions."""
