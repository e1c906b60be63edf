"""The demos are the same from run to run."""

from __future__ import annotations

import pytest

from rlhf_ray.config.load import load_config


@pytest.mark.parametrize("recipe", ["demo", "demo_ppo"])
def test_a_demo_trains_with_one_thread(recipe: str) -> None:
    """Gradients of two threads differ in their last digits on a busy machine."""
    config = load_config([f"recipe={recipe}"])
    assert config.max_staleness == 0
    assert config.training.cpu_threads == 1
    assert not config.needs_critic or config.critic.cpu_threads == 1
