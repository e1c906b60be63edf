"""Reward functions that ship with the package, one file each."""

from __future__ import annotations

BUILTIN_TARGETS: dict[str, str] = {
    "arithmetic": "rlhf_ray.rewards.builtin.arithmetic:Arithmetic",
    "exact_match": "rlhf_ray.rewards.builtin.exact_match:ExactMatch",
    "length": "rlhf_ray.rewards.builtin.length:Length",
    "lines": "rlhf_ray.rewards.builtin.lines:Lines",
    "regular_expression": "rlhf_ray.rewards.builtin.regular_expression:RegularExpression",
}
