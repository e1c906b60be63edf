"""Groups that wait in a checkpoint: nothing of them is lost, doubled, or sampled twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.calls import Call
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.driver.checkpoint_state import DamagedCheckpointError, read_manifest
from rlhf_ray.driver.checkpoints import StepCheckpoints
from rlhf_ray.driver.evaluation.evaluator import NoEvaluation
from rlhf_ray.driver.resume_changes import RunSettings
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.rollouts.early_scores import NO_EARLY_SCORES, EarlyScores
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline
from rlhf_ray.driver.rollouts.waiting_groups import FOLDER, WaitingGroups
from rlhf_ray.driver.run_checkpoints import LoopState, RunCheckpoints
from rlhf_ray.driver.updates.controllers import Controllers
from rlhf_ray.driver.updates.texts import NoTexts
from rlhf_ray.records import Prompt
from rlhf_ray.testing.fake_roles import FakeBuilder, FakeReference
from rlhf_ray.testing.fake_waiter import InProcessPending, InProcessWaiter
from rlhf_ray.testing.fakes import FakeGenerators, FakePrompts, FakeRewards
from tests.unit.driver.checkpoint_fakes import run_settings
from tests.unit.records.test_group_files import plain

SIZE, NUM_STEPS = 4, 12
PLAIN = RolloutSelectionConfig()


class SomeReady(InProcessWaiter):
    """Of the calls that are done some are known to be: a checkpoint finds both kinds."""

    def pending(self) -> InProcessPending:
        waiter = self

        class Pending(InProcessPending):
            def take_ready(self, *, phase: str) -> list[tuple[Call, Any]]:
                assert waiter._random is not None
                ready = [call for call in self._calls if waiter._random.random() < 0.3]
                for call in ready:
                    self.discard(call)
                return [(call, call.signal) for call in ready]

        return Pending(self.choose)


class Run:
    """One life of a run over fakes, from its start to an interruption or to its end.

    Attributes:
        trained: batch of every step that this life has trained.
        said: sentences for people.
    """

    def __init__(
        self,
        output: Path,
        *,
        seed: int = 0,
        max_staleness: int = 2,
        selection: RolloutSelectionConfig = PLAIN,
        in_background: bool = False,
        settings: RunSettings | None = None,
        resume: Path | None = None,
        early: EarlyScores | None = None,
        score: Callable[[Prompt, int], float | None] = lambda prompt, index: float(index),
    ) -> None:
        self.generators = FakeGenerators(
            2, fails=lambda engine, prompt, i: prompt.stream_index % 11 == 5
        )
        self.trained: dict[int, Batch] = {}
        self.said: list[str] = []
        self.early = early
        waiter, settings = SomeReady(seed), settings or run_settings()
        groups = WaitingGroups(FakeBuilder(), waiter, settings=settings, timeout_s=1.0)
        self.pipeline = RolloutPipeline(
            prompts=FakePrompts(),
            generators=self.generators,
            rewards=FakeRewards(score=score),
            waiter=waiter,
            failure_budget=FailureBudget(1.0),
            settings=PipelineSettings(
                num_steps=NUM_STEPS,
                prompts_per_step=SIZE,
                samples_per_prompt=2,
                num_greedy=1,
                max_staleness=max_staleness,
                generate_timeout_s=60.0,
                rollout_selection=selection,
            ),
            early=early or NO_EARLY_SCORES,
        )
        self.checkpoints = StepCheckpoints(
            Checkpoints(output, keep_last=9),
            roles={FOLDER: groups},
            waiter=waiter,
            every_steps=2,
            timeout_s=60.0,
            identity=settings.identity,
            settings=settings.in_checkpoint(),
            in_background=in_background,
        )
        self.saver = RunCheckpoints(
            self.checkpoints, texts=NoTexts(num_ranks=1), evaluator=NoEvaluation(), groups=groups
        )
        self.state = LoopState(step=0, controllers=Controllers.start(AlgorithmConfig()))
        if resume is not None:
            self.checkpoints.check_content(resume)
            self.state = self.saver.load(resume, self.pipeline, self.said.append)
        self.generators.version = self.state.step

    def train(self, until: int) -> Run:
        """Train up to a step; what is not in a checkpoint is lost then."""
        while self.state.step < until:
            batch = self.pipeline.next_batch(self.state.step)
            if self.early:  # It asserts that the reference was asked for these groups.
                assert self.early.score(batch.groups, ())
            self.trained[self.state.step] = batch
            self.pipeline.score_sampled()  # As while the driver waits for the update.
            self.state.step += 1
            self.generators.version = self.state.step
            self.saver.save_if_due(self.state, self.pipeline)
            self.pipeline.begin(self.state.step)
        self.saver.finish()
        return self

    def asked(self) -> set[str]:
        return {prompt_id for _, prompt_id, _ in self.generators.requests}


def checkpoint(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step_{step:06d}"


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def waiting(folder: Path) -> list[str]:
    """Ids of the prompts whose groups wait in a checkpoint."""
    return [name for batch in state_of(folder)["pipeline"]["waiting"] for name in batch["groups"]]


def prompts(batch: Batch) -> list[int]:
    return [int(group.prompt.prompt_id.removeprefix("e0-r")) for group in batch.fresh_groups]


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_prompt_is_trained_once_by_a_run_that_is_interrupted_twice(
    tmp_path, seed, in_background
):
    how = {"seed": seed, "in_background": in_background}
    first = Run(tmp_path, **how).train(5)  # Step 5 is lost.
    second = Run(tmp_path, resume=checkpoint(tmp_path, 4), **how).train(7)
    third = Run(tmp_path, resume=checkpoint(tmp_path, 6), **how).train(NUM_STEPS)

    history = {**first.trained, **second.trained, **third.trained}
    trained = [prompt for step in range(NUM_STEPS) for prompt in prompts(history[step])]
    # The account of the stream: all prompts in order, but for those that fail.
    fine = [index for index in range(100) if index % 11 != 5]
    assert sorted(trained) == fine[: NUM_STEPS * SIZE]

    lives = ((checkpoint(tmp_path, 4), second), (checkpoint(tmp_path, 6), third))
    assert any(len(waiting(folder)) < 2 * SIZE for folder, _ in lives), "some are under way"
    for folder, after in lives:
        kept = waiting(folder)
        assert kept
        assert not after.asked() & set(kept), "what is in the checkpoint is not sampled again"
        assert after.said == [
            f"{len(kept)} of {len(kept)} groups that waited in the checkpoint go on"
        ]
    # They are the groups that were sampled before, with their versions and scores.
    before = {g.prompt.prompt_id: g for g in first.trained[4].groups}
    for group in second.trained[4].groups:
        if group.prompt.prompt_id in waiting(checkpoint(tmp_path, 4)):
            assert plain(group) == plain(before[group.prompt.prompt_id])
            assert int(group.weight_versions.max()) < 4
    manifest = read_manifest(checkpoint(tmp_path, 4))
    assert manifest is not None
    assert list(manifest.below(FOLDER)) == ["groups_00000.safetensors"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "selection",
    [
        RolloutSelectionConfig(dynamic=True, max_replacements_per_step=3),
        RolloutSelectionConfig(oversample=1.5),
        RolloutSelectionConfig(oversample=1.5, dynamic=True),
    ],
    ids=["dynamic", "oversample", "both"],
)
def test_selected_groups_are_neither_lost_nor_doubled(tmp_path, selection, seed):
    def score(prompt: Prompt, sample: int) -> float:
        return 1.0 if selection.dynamic and prompt.stream_index % 3 == 0 else float(sample)

    how: dict[str, Any] = {"selection": selection, "seed": seed, "score": score}
    first = Run(tmp_path, **how).train(5)
    second = Run(tmp_path, resume=checkpoint(tmp_path, 4), **how).train(7)
    third = Run(tmp_path, resume=checkpoint(tmp_path, 6), **how).train(NUM_STEPS)
    history = {**first.trained, **second.trained, **third.trained}
    trained = [prompt for step in range(NUM_STEPS) for prompt in prompts(history[step])]
    assert len(trained) == len(set(trained)) == NUM_STEPS * SIZE
    # Whatever was not trained waits, is under way, was given back, failed, or had no variance.
    state = third.pipeline.state_dict()
    there = {p["stream_index"] for p in state["returned"]}
    gone = set(range(max(trained))) - set(trained) - there
    assert all(index % 11 == 5 or (selection.dynamic and index % 3 == 0) for index in gone)
    for folder, after in ((checkpoint(tmp_path, 4), second), (checkpoint(tmp_path, 6), third)):
        # A spare group is given back, and sampled again by the newest weights.
        assert bool(after.said) == bool(waiting(folder))
        first_step = after.trained[min(after.trained)]
        kept = set(waiting(folder)) & {g.prompt.prompt_id for g in first_step.groups}
        assert not kept & after.asked()


def test_replay_goes_on_exactly(tmp_path):
    selection = RolloutSelectionConfig(replay_groups_per_step=2, replay_capacity=6)
    how: dict[str, Any] = {"selection": selection, "max_staleness": 0}
    straight = Run(tmp_path / "straight", **how).train(NUM_STEPS)
    Run(tmp_path / "stopped", **how).train(5)
    resumed = Run(tmp_path / "stopped", resume=checkpoint(tmp_path / "stopped", 4), **how)
    resumed.train(NUM_STEPS)
    for step in range(4, NUM_STEPS):
        one, other = straight.trained[step], resumed.trained[step]
        assert [plain(g) for g in other.groups] == [plain(g) for g in one.groups]
        assert other.selection_metrics == one.selection_metrics
        assert other.num_replayed == 2


def test_groups_that_are_too_old_for_the_run_are_counted_and_sampled_again(tmp_path):
    Run(tmp_path, max_staleness=2).train(5)
    folder = checkpoint(tmp_path, 4)
    number = len(waiting(folder))
    resumed = Run(tmp_path, resume=folder, max_staleness=0).train(NUM_STEPS)
    assert resumed.said == [
        f"0 of {number} groups that waited in the checkpoint go on; {number} are older than "
        f"max_staleness allows, and are sampled again"
    ]
    assert set(waiting(folder)) <= resumed.asked()
    trained = [p for step in range(4, NUM_STEPS) for p in prompts(resumed.trained[step])]
    assert len(set(trained)) == len(trained) == (NUM_STEPS - 4) * SIZE


def test_a_checkpoint_of_a_release_without_groups_goes_on(tmp_path):
    Run(tmp_path).train(5)
    folder = checkpoint(tmp_path, 4)
    state = state_of(folder)
    kept = set(waiting(folder))
    number = sum(len(batch) for batch in state["pipeline"]["pending"])
    del state["groups"], state["pipeline"]["waiting"], state["pipeline"]["replay"]
    (folder / "run.json").write_text(json.dumps(state))
    (folder / "manifest.json").unlink()
    (folder / "COMMITTED").write_text("")
    resumed = Run(tmp_path, resume=folder).train(NUM_STEPS)
    (said,) = resumed.said
    assert f"kept no groups: the {number} prompts that were in flight are sampled again" in said
    assert kept <= resumed.asked()


def test_groups_of_a_run_that_optimised_something_else_are_sampled_again(tmp_path):
    Run(tmp_path).train(5)
    folder = checkpoint(tmp_path, 4)
    other = run_settings(accepted=("reward",), reward__functions=["prefix"])
    resumed = Run(tmp_path, resume=folder, settings=other).train(6)
    number = len(waiting(folder))
    assert resumed.said == [
        f"{number} groups that waited in the checkpoint are sampled again: reward.functions "
        f"changed since"
    ]
    assert set(waiting(folder)) <= resumed.asked()


def test_the_reference_scores_restored_groups_early(tmp_path):
    def early() -> EarlyScores:
        return EarlyScores(FakeReference(), prompts_at_once=3)

    Run(tmp_path, early=early()).train(5)
    folder = checkpoint(tmp_path, 4)
    assert waiting(folder)
    resumed = Run(tmp_path, resume=folder, early=early()).train(NUM_STEPS)
    assert len(resumed.trained) == NUM_STEPS - 4


def test_files_and_state_that_do_not_belong_together_are_refused(tmp_path):
    Run(tmp_path).train(5)
    folder = checkpoint(tmp_path, 4)
    (file,) = (folder / FOLDER).iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(DamagedCheckpointError, match=r"groups/groups_00000\.safetensors has"):
        Run(tmp_path, resume=folder)
    file.write_bytes(content)
    state = state_of(folder)
    swapped = state["pipeline"]["waiting"][0]["groups"]
    state["pipeline"]["waiting"][0]["groups"] = swapped[::-1][:1] + swapped[1:]
    (folder / "run.json").write_text(json.dumps(state))
    (folder / "manifest.json").unlink()
    (folder / "COMMITTED").write_text("")
    if len(swapped) > 1:
        with pytest.raises(DamagedCheckpointError, match="the files have other groups"):
            Run(tmp_path, resume=folder)


def test_a_synchronous_checkpoint_has_no_groups(tmp_path):
    run = Run(tmp_path, max_staleness=0).train(5)
    folder = checkpoint(tmp_path, 4)
    assert state_of(folder)["groups"] == []
    assert not (folder / FOLDER).exists()
    assert not run.said
    resumed = Run(tmp_path, resume=folder, max_staleness=0).train(6)
    assert resumed.said == []


def test_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_ray.driver.rollouts.waiting_groups._FILE_GROUPS", 2)
    Run(tmp_path).train(5)
    folder = checkpoint(tmp_path, 4)
    sizes: Sequence[int] = state_of(folder)["groups"]
    assert max(sizes) == 2
    assert sum(sizes) == len(waiting(folder))
    assert len(list((folder / FOLDER).iterdir())) == len(sizes) > 1
    resumed = Run(tmp_path, resume=folder).train(6)
    assert resumed.said[0].startswith(f"{sum(sizes)} of {sum(sizes)} groups")
