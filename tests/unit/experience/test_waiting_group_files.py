"""Files of waiting groups that are written while training goes on."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.experience.waiting_groups import WaitingGroupFiles
from rlhf_ray.testing.fakes import make_group, make_prompt

GROUPS = [make_group(make_prompt(1), (0, 1), version=0, rewards=[0.0, 1.0])]


def test_seals_can_be_asked_for_again_and_are_of_one_checkpoint(tmp_path: Path):
    """Ranks that still write make the driver ask again; one that was given up leaves nothing."""
    files = WaitingGroupFiles()
    for number in (0, 1):
        files.save(tmp_path / "old" / f"groups_{number}", GROUPS, in_background=True)
    first = files.written(wait_s=30)
    assert first is not None
    assert sorted(first) == ["groups_0", "groups_1"]
    assert files.written(wait_s=30) == first
    files.save(tmp_path / "new" / "groups_0", GROUPS, in_background=True)
    second = files.written(wait_s=30)
    assert second is not None
    assert list(second) == ["groups_0"]
