"""The two tables of reward kinds: their keys in the configuration, and their roles."""

from __future__ import annotations

from rlhf_ray.cluster.roles.scoring_kinds import SCORING_KINDS
from rlhf_ray.config.groups.reward import REWARD_KINDS


def test_every_kind_that_can_be_configured_scores():
    """A kind with keys and without a scorer would leave every reward at 0."""
    assert [kind.name for kind in SCORING_KINDS] == [kind.name for kind in REWARD_KINDS]
