"""What a response is worth: the protocol, built-in functions, workers with time limits."""

from rlhf_ray.rewards.protocol import Reward, RewardSample, StepRewards

__all__ = ["Reward", "RewardSample", "StepRewards"]
