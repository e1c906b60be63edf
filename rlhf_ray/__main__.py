"""`python -m rlhf_ray`: the command."""

from rlhf_ray.command import run

run()
