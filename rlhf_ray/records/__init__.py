"""The records that travel between workers."""

from rlhf_ray.records.rollouts import *  # noqa: F403
