"""Texts in addition to the samples of a step: their order, their ranks, and resuming."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.calls import Call
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.data.ptx_texts import TextSet
from rlhf_ray.data.rows import DataError
from rlhf_ray.driver.checkpoint_state import read_state
from rlhf_ray.driver.checkpoints import Checkpoints, StepCheckpoints
from rlhf_ray.driver.evaluation.evaluator import NoEvaluation
from rlhf_ray.driver.run_checkpoints import LoopState, RunCheckpoints
from rlhf_ray.driver.updates.controllers import Controllers
from rlhf_ray.driver.updates.texts import NoTexts, TextMixture, TextSource
from rlhf_ray.driver.updates.trainer import NoCritic, Trainer, TrainerSettings
from rlhf_ray.records import Coefficients
from rlhf_ray.testing.fake_roles import FakeBuilder, FakeLearner
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import done

BATCH: Any = SimpleNamespace(groups=())
SCORES: Any = SimpleNamespace(reference=(), values=(), old=())


def make_set(count: int = 10, fingerprint: str = "f") -> TextSet:
    """Text i has i + 2 tokens, all of them i."""
    return TextSet(
        token_ids=tuple((text,) * (text + 2) for text in range(count)),
        num_rows=count,
        num_cut=0,
        skipped=(),
        fingerprint=fingerprint,
    )


def make_mixture(
    texts: TextSet | None = None, *, num_ranks: int = 1, steps_per_update: int = 1, seed: int = 3
) -> TextMixture:
    return TextMixture(
        texts or make_set(),
        seed=seed,
        shuffle=True,
        plan=RankPlan(num_ranks=num_ranks, max_tokens_per_micro_batch=16),
        texts_per_step=4,
        steps_per_update=steps_per_update,
    )


def names(texts: Sequence[Any], step: int) -> list[int]:
    """Numbers of the texts of an optimiser step, over all ranks."""
    found = []
    for mine in texts:
        samples = mine[step]
        found += [int(part[0]) for part in samples.token_ids.split(samples.lengths.tolist())]
    return sorted(found)


def test_every_optimiser_step_has_other_texts() -> None:
    texts = make_mixture(num_ranks=2, steps_per_update=2).next()
    assert [len(mine) for mine in texts] == [2, 2]
    first, second = names(texts, 0), names(texts, 1)
    assert len(first) == len(second) == 4
    assert len(set(first + second)) == 8
    for step, expected in enumerate((first, second)):
        # Of text i all tokens but the first are predicted: i + 1. Counted over both ranks.
        number = sum(text + 1 for text in expected)
        assert [mine[step].num_loss_tokens for mine in texts] == [number, number]
        assert sum(int(mine[step].loss_mask.sum()) for mine in texts) == number
        assert {len(mine[step].micro_batches) for mine in texts} == {
            len(texts[0][step].micro_batches)
        }
        assert all(int(mine[step].lengths.sum()) > 0 for mine in texts), "no rank is idle"


def test_the_texts_of_a_step_do_not_depend_on_ranks_or_updates() -> None:
    one, two = make_mixture(), make_mixture(num_ranks=2, steps_per_update=3)
    apart = [names(one.next(), 0) for _ in range(6)]
    together = [names(texts, step) for texts in (two.next(), two.next()) for step in range(3)]
    assert together == apart
    assert [names(make_mixture(seed=4).next(), 0)] != apart[:1]


def test_without_texts() -> None:
    none = NoTexts(num_ranks=3)
    assert none.next() == ((), (), ())
    assert none.state_dict() == {}
    none.load_state_dict({})


class Policy(FakeLearner):
    """A learner that remembers its texts."""

    def __init__(self) -> None:
        self.seen: list[Sequence[Any]] = []

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]:
        assert len(experiences) == len(texts) == 2
        self.seen.append(texts)
        return [done("learner", rank, signal={}) for rank in range(2)]


class Builder(FakeBuilder):
    def build(self, **parts: Any) -> Call:
        return done("builder", 0, signal={}, payload=(("e0", "e1"), ()))


class Pipeline:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}


class World:
    """Trainer and checkpoints over one source of texts, as a run has them."""

    def __init__(
        self,
        folder: Path,
        texts: TextSource,
        *,
        critic_warmup_steps: int = 0,
        path: str | None = "a.jsonl",
    ) -> None:
        self.policy, waiter = Policy(), InProcessWaiter()
        self.folder = folder
        self.trainer = Trainer(
            builder=Builder(),
            learner=self.policy,
            critic=NoCritic(),
            texts=texts,
            waiter=waiter,
            settings=TrainerSettings(
                build_timeout_s=1.0,
                update_timeout_s=1.0,
                critic_warmup_steps=critic_warmup_steps,
            ),
        )
        checkpoints = StepCheckpoints(
            Checkpoints(folder, keep_last=9),
            roles={"learner": self.policy},
            waiter=waiter,
            every_steps=1,
            timeout_s=1.0,
            identity={"seed": 3, "texts.path": path},
        )
        self.saver = RunCheckpoints(checkpoints, texts=texts, evaluator=NoEvaluation())
        self.state = LoopState(step=0, controllers=Controllers.start(AlgorithmConfig()))
        self.pipeline: Any = Pipeline()

    def train(self, num_steps: int) -> None:
        while self.state.step < num_steps:
            self.trainer.update(BATCH, SCORES, step=self.state.step, coefficients=Coefficients())
            self.state.step += 1
            self.saver.save_if_due(self.state, self.pipeline)

    def resume(self, step: int) -> None:
        self.state = self.saver.load(
            self.folder / "checkpoints" / f"step_{step:06d}", self.pipeline
        )

    def tokens(self) -> list[list[list[list[int]]]]:
        """The tokens of every update, by rank and optimiser step."""
        return [
            [[samples.token_ids.tolist() for samples in mine] for mine in texts]
            for texts in self.policy.seen
        ]


def two_ranks(texts: TextSet | None = None) -> TextMixture:
    return make_mixture(texts, num_ranks=2, steps_per_update=2)


def test_a_resumed_run_has_the_same_texts_as_an_uninterrupted_run(tmp_path: Path) -> None:
    straight = World(tmp_path / "straight", two_ranks())
    straight.train(7)
    stopped = World(tmp_path / "stopped", two_ranks())
    stopped.train(5)
    resumed = World(tmp_path / "stopped", two_ranks())
    # The checkpoint of step 3 lies in the middle of the third epoch.
    resumed.resume(3)
    resumed.train(7)
    assert resumed.state.step == 7
    assert resumed.tokens() == straight.tokens()[3:]
    assert straight.tokens()[3] != straight.tokens()[0]


def test_a_checkpoint_of_other_texts_is_refused(tmp_path: Path) -> None:
    World(tmp_path, two_ranks()).train(1)
    with pytest.raises(DataError, match="stream of texts is not that of this run: fingerprint was"):
        World(tmp_path, two_ranks(make_set(fingerprint="g"))).resume(1)
    with pytest.raises(RequestError, match=r"texts\.path='a\.jsonl' there, None here"):
        World(tmp_path, NoTexts(num_ranks=2), path=None).resume(1)


def test_a_checkpoint_of_a_release_without_texts_is_resumed(tmp_path: Path) -> None:
    World(tmp_path, NoTexts(num_ranks=2), path=None).train(1)
    file = tmp_path / "checkpoints" / "step_000001" / "run.json"
    state = read_state(file.parent)
    del state["texts"], state["identity"]["texts.path"]
    file.write_text(json.dumps(state))
    # Such a release wrote no manifest either, and an empty marker.
    (file.parent / "manifest.json").unlink()
    (file.parent / "COMMITTED").write_text("")
    world = World(tmp_path, NoTexts(num_ranks=2), path=None)
    world.resume(1)
    assert world.state.step == 1


def test_no_texts_are_used_up_while_only_the_critic_learns(tmp_path: Path) -> None:
    usual = World(tmp_path / "a", two_ranks())
    usual.train(1)
    waiting = World(tmp_path / "b", two_ranks(), critic_warmup_steps=2)
    waiting.train(3)
    assert waiting.tokens() == usual.tokens()


def test_predicted_tokens() -> None:
    ((samples,),) = make_mixture(make_set(1)).next()
    assert samples.token_ids.tolist() == [0] * 8
    assert samples.loss_mask.tolist() == [False, True] * 4
    assert samples.token_ids.dtype == torch.int64
    assert samples.support_token_ids is None
