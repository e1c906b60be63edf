"""Evaluation on held-out prompts while a policy is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.cluster.systems.rl import System
from rlhf_ray.data.prompts.fingerprint import fingerprint, rows_fingerprint
from rlhf_ray.driver.best_models import BestModels
from rlhf_ray.driver.evaluation.collector import AnswerCollector
from rlhf_ray.driver.evaluation.evaluator import (
    BestPolicy,
    Evaluator,
    EvaluatorSettings,
    HeldOutEvaluator,
    NoBest,
    NoEvaluation,
)
from rlhf_ray.driver.healing.parts import NoHealing
from rlhf_ray.driver.healing.trained_roles import TrainedRoles
from rlhf_ray.driver.updates.device_sharing import DeviceSharing
from rlhf_ray.driver.updates.token_scores import NoTokenScores
from rlhf_ray.models.saving.generation_ends import add_ends
from rlhf_ray.publish.base import AVERAGE, WeightTransport
from rlhf_ray.publish.publisher import Publisher
from rlhf_ray.records import Prompt
from rlhf_ray.stages.rl.engines import RunEngines
from rlhf_ray.stages.rl.parts import reference_role
from rlhf_ray.stages.rl.settings import RlSettings


def make_evaluator(
    settings: RlSettings,
    system: System,
    engines: RunEngines,
    prompts: Sequence[Prompt],
    turns: DeviceSharing,
    publisher: Publisher,
    transport: WeightTransport,
    trained: TrainedRoles | NoHealing,
    *,
    is_resumed: bool,
    say: Callable[[str], None],
) -> Evaluator:
    """The evaluator of the policy of a started system.

    Args:
        publisher: publishes the policy.
        transport: opened from the learner to the engines.
        is_resumed: the checkpoint knows the best model so far. Otherwise models that an earlier
            run left are removed.
        say: shows a sentence.
    """
    evaluation = settings.evaluation
    if evaluation.every == 0:
        return NoEvaluation()
    measures_kl = evaluation.kl != "none"
    collector = AnswerCollector(
        generators=engines.sampling,
        rewards=system.rewards,
        reference=reference_role(settings, system) if measures_kl else NoTokenScores(),
        builder=system.builder,
        waiter=system.supervisor,
        settings=settings.collect,
    )
    rows = f"{fingerprint(prompts)} {rows_fingerprint(prompts)}"
    best = _best(settings, system, turns, publisher, trained, rows=rows, say=say)
    if not is_resumed:
        best.clear()
    averages = settings.ema_decay is not None
    return HeldOutEvaluator(
        collect=collector.collect,
        prompts=prompts,
        best=best,
        average=_average(transport, turns, trained) if averages else None,
        keep=_keep(settings, system),
        settings=EvaluatorSettings(
            every=evaluation.every, num_steps=settings.num_steps, report=settings.report
        ),
    )


def _best(
    settings: RlSettings,
    system: System,
    turns: DeviceSharing,
    publisher: Publisher,
    trained: TrainedRoles | NoHealing,
    *,
    rows: str,
    say: Callable[[str], None],
) -> BestPolicy | NoBest:
    evaluation = settings.evaluation
    if not evaluation.keep_best:
        return NoBest()
    output = settings.output

    def write(folder: Path) -> None:
        system.supervisor.results(
            system.learner.save_model(folder),
            phase="checkpoint",
            timeout_s=settings.deadlines.checkpoint_s,
        )

    def save(folder: Path) -> None:
        # The engines have the devices; the learner needs them to gather its weights.
        turns.begin_training()
        trained.do(write, folder)
        add_ends(folder, settings.end_token_ids)
        if settings.is_colocated:
            publisher.publish_again()

    models = BestModels(output, save, num_checkpoints=settings.checkpoint.num_kept)
    return BestPolicy(
        output,
        models,
        metric=evaluation.compared_by,
        lowest_is_best=evaluation.best_is_lowest,
        rows=rows,
        say=say,
    )


def _average(
    transport: WeightTransport, turns: DeviceSharing, trained: TrainedRoles | NoHealing
) -> Callable[[int], None]:
    """Publish the EMA to the engines. Without a probe: only the engines compute with the EMA."""

    def publish(version: int) -> None:
        turns.begin_training()
        turns.begin_publishing()
        trained.do(transport.send, version, what=AVERAGE)
        turns.begin_generating()

    return publish


def _keep(settings: RlSettings, system: System) -> Callable[[str, Sequence[Any]], None]:
    def write(name: str, groups: Sequence[Any]) -> None:
        if not settings.observe.rollouts:
            return
        path = settings.output / "evaluation" / f"{name}.jsonl"
        written = [system.builder.write_rollouts(path, groups), system.builder.finish_rollouts()]
        system.supervisor.results(written, phase="build", timeout_s=settings.deadlines.reference_s)

    return write
