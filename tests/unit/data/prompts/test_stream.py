"""The order of prompts, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.data.prompts.order import stable_seed
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.data.rows import DataError
from rlhf_ray.records import Prompt


def make_set(count: int, fingerprint: str = "f", rows_fingerprint: str = "") -> PromptSet:
    prompts = tuple(
        Prompt(
            prompt_id=f"r{row}",
            stream_index=0,
            text=f"text {row}",
            token_ids=(row,),
            answer=str(row),
            source="test",
            seed=0,
            columns={"row": row},
        )
        for row in range(count)
    )
    return PromptSet(
        prompts=prompts,
        skipped=(),
        left_out_columns=(),
        fingerprint=fingerprint,
        rows_fingerprint=rows_fingerprint,
    )


def make_stream(count: int = 10, *, seed: int = 1, shuffle: bool = True) -> PromptStream:
    return PromptStream(make_set(count), seed=seed, shuffle=shuffle)


def take(stream: PromptStream, count: int) -> list[Prompt]:
    return [stream.next() for _ in range(count)]


def rows(prompts: list[Prompt]) -> list[int]:
    return [prompt.columns["row"] for prompt in prompts]


def test_every_epoch_has_every_row_once_in_its_own_order() -> None:
    prompts = take(make_stream(10), 30)
    epochs = [rows(prompts[start : start + 10]) for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(10)]}) == 4


def test_ids_indices_and_seeds() -> None:
    stream = make_stream(3, shuffle=False)
    prompts = take(stream, 7)
    assert [prompt.prompt_id for prompt in prompts[2:5]] == ["e0-r2", "e1-r0", "e1-r1"]
    assert [prompt.stream_index for prompt in prompts] == list(range(7))
    assert rows(prompts) == [0, 1, 2, 0, 1, 2, 0]
    assert len({prompt.seed for prompt in prompts}) == 7
    assert all(prompt.seed == stable_seed(1, prompt.prompt_id) for prompt in prompts)
    # Nothing else changes on the way from template to prompt.
    template = make_set(3).prompts[2]
    assert dataclasses.replace(prompts[2], prompt_id="r2", stream_index=0, seed=0) == template
    assert stream.epoch == 2


def test_seed_decides() -> None:
    assert take(make_stream(seed=1), 25) == take(make_stream(seed=1), 25)
    assert rows(take(make_stream(seed=1), 10)) != rows(take(make_stream(seed=2), 10))


def test_order_and_seeds_are_fixed_for_ever() -> None:
    """Ids and seeds must be the same in every process and for checkpoints of earlier releases."""
    assert rows(take(make_stream(), 10)) == [4, 9, 8, 7, 6, 3, 2, 0, 5, 1]
    assert stable_seed(0, "e0-r0") == 3549867529649297098


def test_seeds_are_spread_over_62_bits() -> None:
    assert stable_seed(0, "e0-r0") != stable_seed("0", "e0-r0")
    seeds = [stable_seed(0, row) for row in range(1000)]
    assert len(set(seeds)) == 1000
    assert 2**61 < max(seeds) < 2**62
    assert min(seeds) >= 0


@pytest.mark.parametrize("taken", [0, 3, 10, 14, 20])
@pytest.mark.parametrize("shuffle", [True, False])
def test_resume(taken: int, shuffle: bool) -> None:
    whole = take(make_stream(shuffle=shuffle), taken + 25)
    first = make_stream(shuffle=shuffle)
    take(first, taken)
    state = json.loads(json.dumps(first.state_dict()))
    second = make_stream(shuffle=shuffle)
    take(second, 7)
    second.load_state_dict(state)
    assert take(second, 25) == whole[taken:]


def test_state_does_not_follow_the_stream() -> None:
    stream = make_stream()
    state = stream.state_dict()
    expected = take(stream, 5)
    stream.load_state_dict(state)
    assert take(stream, 5) == expected


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (PromptStream(make_set(9), seed=1, shuffle=True), "num_prompts was 9 and is 10"),
        (PromptStream(make_set(10, "g"), seed=1, shuffle=True), "fingerprint was 'g' and is 'f'"),
        (PromptStream(make_set(10), seed=2, shuffle=True), "seed was 2 and is 1"),
        (PromptStream(make_set(10), seed=1, shuffle=False), "shuffle was False and is True"),
    ],
)
def test_state_of_another_stream_is_refused(other: PromptStream, message: str) -> None:
    stream = make_stream()
    take(stream, 4)
    with pytest.raises(DataError, match=message):
        stream.load_state_dict(other.state_dict())
    assert stream.next().stream_index == 4


def test_rows_that_differ_in_what_rewards_see_are_refused() -> None:
    one, other = (PromptStream(make_set(10, "f", r), seed=1, shuffle=True) for r in ("r", "s"))
    with pytest.raises(DataError, match=r"rows_fingerprint was 'r' and is 's'.*the tokens have no"):
        other.load_state_dict(one.state_dict())
    # A release that did not keep it.
    old = make_stream(10)
    take(old, 4)
    other.load_state_dict(old.state_dict())
    assert other.next().stream_index == 4
