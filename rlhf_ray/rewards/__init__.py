"""What a response is worth: the protocol, built-in functions, workers with time limits."""

from rlhf_ray.rewards.protocol import Reward, RewardSample

__all__ = ["Reward", "RewardSample"]
