"""Log-probabilities of the starting policy: computed once, cached, recomputed for other data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.calls import Call
from rlhf_ray.driver.fit.reference_cache import FILE_NAME, AnswerScorer, ReferenceCache
from rlhf_ray.models.fingerprint import model_facts
from rlhf_ray.objectives.preference_batches import PreferenceGroup, spread_preference_groups
from rlhf_ray.records.preferences import PreferenceSamples
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.testing.fake_roles import FakeOfflineRanks
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import done


def preference_group(*tokens: int) -> PreferenceGroup:
    """A group whose answers have one token each."""
    mask = torch.tensor([False, True])
    return PreferenceGroup(
        answers=tuple(
            LabelledTokens(token_ids=torch.tensor([1, token]), loss_mask=mask) for token in tokens
        ),
        ranks=tuple(range(len(tokens))),
        margin=0.0,
        reference_logprobs=(0.0,) * len(tokens),
    )


SETS = {
    "train": [preference_group(3, 4), preference_group(5, 6, 7), preference_group(8, 9)],
    "held_out": [preference_group(10, 11)],
}


class NumberedRanks(FakeOfflineRanks):
    """The log-probability of an answer is minus a tenth of its token."""

    def __init__(self) -> None:
        self.num_calls = 0

    def score_answers(self, samples: Sequence[PreferenceSamples]) -> list[Call]:
        self.num_calls += 1
        return [
            done("learner", rank, [-token / 10 for token in own.token_ids[1::2].tolist()])
            for rank, own in enumerate(samples)
        ]


def scorer(ranks: NumberedRanks) -> AnswerScorer:
    plan = RankPlan(num_ranks=2, max_tokens_per_micro_batch=6)
    return AnswerScorer(
        ranks, InProcessWaiter(), lambda some: spread_preference_groups(some, plan), timeout_s=1.0
    )


def numbers(found: dict[str, tuple[PreferenceGroup, ...]]) -> dict[str, list[tuple[float, ...]]]:
    return {name: [own.reference_logprobs for own in part] for name, part in found.items()}


EXPECTED = {"train": [(-0.3, -0.4), (-0.5, -0.6, -0.7), (-0.8, -0.9)], "held_out": [(-1.0, -1.1)]}


def referenced(folder: Path, facts: Any, ranks: NumberedRanks) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    found = ReferenceCache(folder, facts).referenced(SETS, scorer(ranks), said.append)
    return numbers(found), said


def test_numbers_come_back_to_their_answers(tmp_path: Path) -> None:
    found, said = referenced(tmp_path, {"rows": "a"}, NumberedRanks())
    assert found == EXPECTED
    assert said == ["log-probabilities of 9 answers under the starting policy"]


def test_they_are_computed_once(tmp_path: Path) -> None:
    referenced(tmp_path, {"rows": "a"}, NumberedRanks())
    ranks = NumberedRanks()
    found, said = referenced(tmp_path, {"rows": "a"}, ranks)
    assert ranks.num_calls == 0
    assert found == EXPECTED
    assert str(tmp_path / FILE_NAME) in said[0]


@pytest.mark.parametrize("facts", [{"rows": "b"}, {"rows": "a", "dtype": "bfloat16"}])
def test_other_data_or_another_model_is_a_miss(tmp_path: Path, facts: dict[str, str]) -> None:
    referenced(tmp_path, {"rows": "a"}, NumberedRanks())
    file = tmp_path / FILE_NAME
    saved = json.loads(file.read_text())
    saved["sets"]["train"][0] = [-99.0, -99.0]
    file.write_text(json.dumps(saved))
    assert referenced(tmp_path, {"rows": "a"}, NumberedRanks())[0]["train"][0] == (-99.0, -99.0)
    ranks = NumberedRanks()
    assert referenced(tmp_path, facts, ranks)[0] == EXPECTED
    assert ranks.num_calls == 2
    # From now on, the file holds these numbers.
    assert referenced(tmp_path, facts, ranks)[0] == EXPECTED
    assert ranks.num_calls == 2


def test_an_interrupted_write_is_a_miss(tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}.partial").write_text('{"finger')
    assert referenced(tmp_path, {"rows": "a"}, NumberedRanks())[0] == EXPECTED
    assert not (tmp_path / f"{FILE_NAME}.partial").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace('"sets"', '"sats"'),
        lambda text: text.replace('"held_out"', '"held"'),
        lambda text: text.replace("-0.9", "null"),
        lambda text: text.replace("-0.8, ", ""),
    ],
)
def test_a_damaged_file_is_replaced_and_said(tmp_path: Path, damage: Any) -> None:
    facts, ranks = {"rows": "a"}, NumberedRanks()
    referenced(tmp_path, facts, ranks)
    path = tmp_path / FILE_NAME
    whole = path.read_text()
    path.write_text(damage(whole))
    assert path.read_text() != whole
    found, said = referenced(tmp_path, facts, ranks)
    assert found == EXPECTED
    assert said[0] == f"{path} is damaged, and is replaced"
    assert ranks.num_calls == 4
    assert path.read_text() == whole


def test_a_model_folder_that_was_rewritten_is_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    before = model_facts(str(folder))
    assert model_facts(str(folder)) == before
    (folder / "model.safetensors").write_text("more weights")
    assert model_facts(str(folder)) != before
    assert model_facts("owner/name") == ["owner/name"]
