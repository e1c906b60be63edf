"""Prompts drawn by their rate of success: weights, frequencies, and going on after a stop."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.data.prompts.curriculum import CurriculumSettings, CurriculumStream, success_weight
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.data.rows import DataError
from rlhf_ray.records import GroupSummary, Prompt
from tests.unit.data.prompts.test_stream import make_set

SETTINGS = CurriculumSettings(target=0.5, min_weight=0.1, recency=0.5, success_reward=1.0)


def make_stream(
    count: int = 10, *, seed: int = 1, how: CurriculumSettings = SETTINGS
) -> CurriculumStream:
    stream = PromptStream(make_set(count), seed=seed, shuffle=True)
    return CurriculumStream(stream, how, seed=seed)


def outcome(prompt_id: str, rewards: list[float]) -> GroupSummary:
    return GroupSummary(
        prompt_id=prompt_id,
        stream_index=0,
        source="test",
        sample_lengths=(),
        response_lengths=(),
        finish_reasons=(),
        rewards=tuple(rewards),
        reward_parts={},
        oldest_version=-1,
        newest_version=-1,
        failures=(),
    )


def row(prompt: Prompt) -> int:
    return prompt.columns["row"]


class TestWeight:
    @pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
    def test_a_half_is_the_learnability(self, rate):
        assert success_weight(rate, 0.5) == pytest.approx(4 * rate * (1 - rate))

    @given(rate=st.floats(0, 1), target=st.floats(0.01, 0.99))
    def test_it_is_one_at_the_target_and_less_elsewhere(self, rate, target):
        assert success_weight(target, target) == pytest.approx(1.0)
        assert 0.0 <= success_weight(rate, target) <= 1.0 + 1e-12
        assert success_weight(0.0, target) == success_weight(1.0, target) == 0.0

    @given(near=st.floats(0.01, 1), far=st.floats(0.01, 1), target=st.floats(0.05, 0.95))
    def test_it_falls_on_both_sides(self, near, far, target):
        near, far = sorted((near, far))
        for end in (0.0, 1.0):
            closer = success_weight(target + near * (end - target), target)
            farther = success_weight(target + far * (end - target), target)
            assert farther <= closer + 1e-12


def test_without_outcomes_it_is_the_stream_below():
    plain = PromptStream(make_set(10), seed=1, shuffle=True)
    stream = make_stream()
    assert [stream.next() for _ in range(25)] == [plain.next() for _ in range(25)]


def test_rates_move_towards_each_new_group():
    stream = make_stream()
    stream.record(outcome("e0-r3", [1.0, 0.0, 0.0, 0.0]))
    assert stream.weight("e7-r3") == pytest.approx(4 * 0.25 * 0.75)
    # To half way between 1/4 and 3/4; a reward above the threshold is a success, one below not.
    stream.record(outcome("e1-r3", [2.0, 1.0, 1.0, 0.99]))
    assert stream.weight("e7-r3") == 1.0
    stream.record(outcome("e2-r4", [0.0, 0.5]))
    assert stream.weight("e7-r4") == 0.1, "the least weight"
    assert stream.weight("e7-r5") == 1.0, "not seen yet"
    stream.record(outcome("e3-r4", []))
    assert stream.weight("e7-r4") == 0.1, "no samples, nothing learnt"


@pytest.mark.parametrize("seed", range(3))
def test_how_often_a_row_comes_up_is_proportional_to_its_weight(seed):
    stream = make_stream(4, seed=seed)
    rates = {0: [1.0, 0.0], 1: [1.0, 0.0, 0.0, 0.0], 2: [0.0], 3: [1.0]}
    for number, rewards in rates.items():
        stream.record(outcome(f"e0-r{number}", rewards))
    epochs = 2000
    taken = Counter()
    while (prompt := stream.next()).stream_index < 4 * epochs:
        taken[row(prompt)] += 1
    # Four standard deviations of a coin that is thrown 2000 times are 0.045 at most.
    for number, weight in {0: 1.0, 1: 0.75, 2: 0.1, 3: 0.1}.items():
        assert taken[number] / epochs == pytest.approx(weight, abs=0.045)


@settings(max_examples=30, deadline=None)
@given(
    rewards=st.lists(st.sampled_from([0.0, 1.0]), min_size=40, max_size=40),
    stop=st.integers(0, 39),
)
def test_resume(rewards, stop):
    """Same outcomes, same prompts; in one go or with a stop anywhere."""

    def go_on(stream: CurriculumStream, positions: range) -> list[Prompt]:
        prompts = []
        for position in positions:
            prompts.append(stream.next())
            mixed = [rewards[position], rewards[(position * 7) % 40]]
            stream.record(outcome(prompts[-1].prompt_id, mixed))
        return prompts

    whole = go_on(make_stream(5), range(40))
    first = make_stream(5)
    assert go_on(first, range(stop)) == whole[:stop]
    state = json.loads(json.dumps(first.state_dict()))
    second = make_stream(5)
    second.load_state_dict(state)
    assert go_on(second, range(stop, 40)) == whole[stop:]
    indices = [prompt.stream_index for prompt in whole]
    assert indices == sorted(set(indices))
    assert len({prompt.prompt_id for prompt in whole}) == 40


def test_state_does_not_follow_the_stream():
    stream = make_stream()
    state = stream.state_dict()
    stream.record(outcome("e0-r3", [0.0]))
    assert state["success_rates"] == {}


def test_with_and_without_a_curriculum_are_different_runs():
    plain = PromptStream(make_set(10), seed=1, shuffle=True)
    with pytest.raises(DataError, match=r"without a curriculum.*selection\.curriculum=false"):
        make_stream().load_state_dict(plain.state_dict())
    with pytest.raises(DataError, match=r"with a curriculum.*selection\.curriculum=true"):
        plain.load_state_dict(make_stream().state_dict())
    with pytest.raises(DataError, match="num_prompts was 9 and is 10"):
        make_stream().load_state_dict(make_stream(9).state_dict())


def test_a_plain_stream_does_not_care_for_outcomes():
    plain = PromptStream(make_set(10), seed=1, shuffle=True)
    before = plain.state_dict()
    plain.record(outcome("e0-r3", [0.0]))
    assert plain.state_dict() == before
