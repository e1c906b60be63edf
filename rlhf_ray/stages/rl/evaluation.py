"""What looks at held-out prompts while a policy is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.cluster.roles.learner import AverageAlone
from rlhf_ray.cluster.systems.rl import System
from rlhf_ray.config.run import Config
from rlhf_ray.data.prompts.load import PromptSet, load_prompts
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
from rlhf_ray.driver.updates.device_sharing import DeviceSharing
from rlhf_ray.driver.updates.scorers import NoScores
from rlhf_ray.publish.base import TransferSettings
from rlhf_ray.publish.transports import weight_transport
from rlhf_ray.records import Prompt
from rlhf_ray.stages.evaluate.settings import collect_settings, held_out_data, report_settings
from rlhf_ray.stages.rl.parts import reference_role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_held_out(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    trained: PromptSet,
    *,
    report: Callable[[str], None],
) -> tuple[Prompt, ...]:
    """The held-out prompts; none without `evaluation.every`.

    Args:
        trained: the prompts of the run; those that are among the held-out ones are counted.
        report: takes lines for people.

    Raises:
        DataError: they cannot be read.
    """
    if config.evaluation.every == 0:
        return ()
    held_out = load_prompts(held_out_data(config), tokenizer, seed=config.seed)
    report(f"held out: {held_out.describe()}")
    known = {prompt.token_ids for prompt in trained.prompts}
    shared = sum(prompt.token_ids in known for prompt in held_out.prompts)
    if shared:
        report(f"{shared} of the held-out prompts are trained on too")
    return held_out.prompts


def make_evaluator(
    config: Config,
    system: System,
    prompts: Sequence[Prompt],
    turns: DeviceSharing,
    *,
    is_resumed: bool,
) -> Evaluator:
    """What evaluates the policy of a started system.

    Args:
        is_resumed: a checkpoint will say what was best; what an earlier run left is removed
            otherwise.
    """
    evaluation = config.evaluation
    if evaluation.every == 0:
        return NoEvaluation()
    measures_kl = evaluation.kl != "none"
    collector = AnswerCollector(
        generators=system.generators,
        rewards=system.rewards,
        reference=reference_role(config, system) if measures_kl else NoScores(),
        builder=system.builder,
        waiter=system.supervisor,
        settings=collect_settings(config, measures_kl=measures_kl, with_text=False),
    )
    best = _best(config, system, turns)
    if not is_resumed:
        best.clear()
    averages = config.training.ema_decay is not None
    return HeldOutEvaluator(
        collect=collector.collect,
        prompts=prompts,
        best=best,
        average=_average(config, system, turns) if averages else None,
        keep=_keep(config, system),
        settings=EvaluatorSettings(
            every=evaluation.every, num_steps=config.num_steps, report=report_settings(config)
        ),
    )


def _best(config: Config, system: System, turns: DeviceSharing) -> BestPolicy | NoBest:
    evaluation = config.evaluation
    if not evaluation.keep_best:
        return NoBest()
    output = Path(config.output_dir)

    def save(folder: Path) -> None:
        # The engines have the devices: the learner needs them for what it gathers.
        turns.begin_training()
        system.supervisor.results(
            system.learner.save_model(folder),
            phase="checkpoint",
            timeout_s=config.deadlines.checkpoint_s,
        )
        turns.begin_publishing()
        turns.begin_generating()

    models = BestModels(output, save, num_checkpoints=config.checkpoint.keep_last)
    return BestPolicy(
        output,
        models,
        metric=evaluation.compared_by,
        lowest_is_best=evaluation.best_is_lowest,
    )


def _average(config: Config, system: System, turns: DeviceSharing) -> Callable[[int], None]:
    """Puts the average onto the engines. No probe: nothing but an engine computes with it."""
    timeout_s = config.deadlines.publish_s

    def publish(version: int) -> None:
        turns.begin_training()
        turns.begin_publishing()
        weight_transport(config.publish.transport).send(
            AverageAlone(system.learner),
            system.generators,
            system.supervisor,
            TransferSettings(
                bucket_bytes=config.publish.bucket_bytes, phase="publish", timeout_s=timeout_s
            ),
        )
        finished = system.generators.finish_update(version)
        system.supervisor.results(finished, phase="publish", timeout_s=timeout_s)
        turns.begin_generating()

    return publish


def _keep(config: Config, system: System) -> Callable[[str, Sequence[Any]], None]:
    def write(name: str, groups: Sequence[Any]) -> None:
        if not config.observe.rollouts:
            return
        path = Path(config.output_dir) / "evaluation" / f"{name}.jsonl"
        written = system.builder.write_rollouts(path, groups)
        system.supervisor.results([written], phase="build", timeout_s=config.deadlines.reference_s)

    return write
