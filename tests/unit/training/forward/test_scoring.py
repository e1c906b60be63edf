"""Values after truncated answers, on one rank without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.batching.layout_cost import PairCosts
from rlhf_ray.batching.row_layout import RowLayout
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.records import TokenValues
from rlhf_ray.training.forward.scoring import score_groups, score_states
from tests.unit.training.builders import F, T, build, make_group, only

COSTS = PairCosts(causal=1e-3, masked=1e-3)


def tokens_before(batch: MicroBatch) -> torch.Tensor:
    """A stand-in for a critic: returns the token before each predicted one."""
    return batch.input_ids.flatten()[batch.hidden_index].float()


@pytest.fixture(autouse=True)
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of one rank: scoring asks the other ranks for their number of batches."""
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def three_samples():
    group = make_group(
        0,
        [[F, T, T], [F, F, T], [F, T]],
        [1.0, 0.0, 2.0],
        token_ids=[1, 2, 3, 4, 5, 6, 7, 8],
    )
    return dataclasses.replace(group, finish_reasons=("length", "stop", "length"))


@pytest.mark.parametrize("setting", ["padded", "packed", "auto"])
def test_the_state_after_a_truncated_answer(setting):
    layout = RowLayout(setting=setting, costs=COSTS, max_tokens=3)
    (scored,) = score_states(tokens_before, [three_samples()], layout=layout)
    assert scored.final_values.tolist() == [3.0, 0.0, 8.0]
    (plain,) = score_groups(tokens_before, [three_samples()], layout=layout)
    assert torch.equal(scored.values, plain.values)
    assert plain.final_values is None


def test_no_group_at_all():
    layout = RowLayout(setting="padded", costs=COSTS, max_tokens=3)
    assert score_states(tokens_before, [], layout=layout) == []


def test_advantages_bootstrap_beyond_the_limit():
    algorithm = AlgorithmConfig(advantage="gae", gamma=0.5, gae_lambda=0.0)
    zeros = torch.zeros(8)
    ended = TokenValues(prompt_id="prompt-0", values=zeros)
    cut = dataclasses.replace(ended, final_values=torch.tensor([4.0, 0.0, 2.0]))
    found = [only(build([three_samples()], algorithm, values=[v])).returns for v in (ended, cut)]
    difference = (found[1] - found[0]).sort().values.tolist()
    # Half of 4 and of 2 on the last tokens of the first and the third sample.
    assert difference == [0.0] * 6 + [1.0, 2.0]
