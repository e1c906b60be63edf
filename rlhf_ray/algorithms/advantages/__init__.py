"""Advantage estimators, one idea per file."""
