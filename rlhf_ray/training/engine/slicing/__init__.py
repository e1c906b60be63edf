"""Matrices that the ranks of a group hold in slices (tensor slicing, DeepSpeed AutoTP)."""
