"""The file of events, also after a full disk."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.calls import MemberName
from rlhf_ray.driver.fleet.accounts import FILE_NAME, RecoveryAccounts, num_lost
from rlhf_ray.losses import Lost


def lose(accounts: RecoveryAccounts, rank: int) -> None:
    member = MemberName(role="generator", rank=rank)
    lost = Lost(member=member, what=f"{member} died", reason="a test", phase="generate", step=1)
    following = MemberName(role="generator", rank=rank, incarnation=2)
    accounts.lost(lost, where="a test", next_engine=following, now=0.0)


@pytest.mark.parametrize("torn", ['{"event": "eng', '{"a": {}', "{}", "[1]", "\xff}"])
def test_a_torn_line_costs_that_line(torn, tmp_path):
    accounts = RecoveryAccounts(folder=tmp_path, say=lambda _: None)
    lose(accounts, 0)
    path = tmp_path / FILE_NAME
    with path.open("ab") as file:
        file.write(torn.encode("latin-1"))
    assert num_lost(tmp_path) == 1
    lose(accounts, 1)
    lose(accounts, 2)
    assert num_lost(tmp_path) == 3
    first, second, *others = path.read_bytes().splitlines()
    assert second == torn.encode("latin-1")
    engines = [json.loads(line)["engine"] for line in (first, *others)]
    assert engines == ["generator_0", "generator_1", "generator_2"]


def test_a_run_that_lost_nothing_has_no_file(tmp_path):
    assert num_lost(tmp_path) == 0
