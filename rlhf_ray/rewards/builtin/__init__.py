"""Reward functions that ship with the package, one file each."""

from __future__ import annotations
