"""The rollout pipeline of a run: its prompts, its settings, and what they ask of the data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ray.batching.rank_plan import rank_plan
from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.learner import AdapterAlone, PolicyWithoutAdapter
from rlhf_ray.cluster.systems.rl import System
from rlhf_ray.config.run import Config
from rlhf_ray.data.ptx_texts import load_texts
from rlhf_ray.driver.checkpoints import Checkpoints, StepCheckpoints
from rlhf_ray.driver.evaluation.evaluator import Evaluator
from rlhf_ray.driver.roles import Checkpointed, TokenScorer
from rlhf_ray.driver.run_checkpoints import RunCheckpoints
from rlhf_ray.driver.run_log import NoRollouts, RolloutFiles
from rlhf_ray.driver.updates.device_sharing import ColocatedDevices, DedicatedDevices, DeviceSharing
from rlhf_ray.driver.updates.reference_update import (
    NoReferenceUpdate,
    PeriodicReferenceUpdater,
    ReferenceUpdateSettings,
)
from rlhf_ray.driver.updates.scorers import NoScores, Scorers
from rlhf_ray.driver.updates.texts import NoTexts, TextMixture, TextSource
from rlhf_ray.driver.updates.trainer import NoCritic, Trainer, TrainerSettings
from rlhf_ray.publish.gate import default_tolerance, make_probe
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.publish.transports import weight_transport
from rlhf_ray.stages.rl.inputs import _Inputs
from rlhf_ray.stages.trained_part import split_off_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

import difflib

from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.prompts.curriculum import CurriculumSettings, CurriculumStream
from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline

_MAX_SHOWN = 8


def make_pipeline(config: Config, system: System, prompts: PromptSet) -> RolloutPipeline:
    """The pipeline over a started system."""
    return RolloutPipeline(
        prompts=make_stream(config, prompts),
        generators=system.generators,
        rewards=system.rewards,
        waiter=system.supervisor,
        failure_budget=FailureBudget(config.reward.max_failure_rate),
        settings=PipelineSettings(
            num_steps=config.num_steps,
            prompts_per_step=config.prompts_per_step,
            samples_per_prompt=config.samples_per_prompt,
            num_greedy=config.algorithm.num_greedy,
            max_staleness=config.max_staleness,
            generate_timeout_s=config.deadlines.generate_s,
            sampling=config.sampling,
        ),
    )


def make_stream(config: Config, prompts: PromptSet) -> PromptStream | CurriculumStream:
    """Prompts in the order of the seed, thinned out by a curriculum where there is one."""
    stream = PromptStream(prompts, seed=config.seed, shuffle=config.data.shuffle)
    sampling = config.sampling
    if not sampling.curriculum:
        return stream
    settings = CurriculumSettings(
        target=sampling.curriculum_target,
        min_weight=sampling.curriculum_min_weight,
        recency=sampling.curriculum_recency,
        success_reward=sampling.success_reward,
    )
    return CurriculumStream(stream, settings, seed=config.seed)


def check_tasks(config: Config, prompts: PromptSet) -> None:
    """Refuse a weight for a task that no prompt belongs to.

    Raises:
        RequestError: names it, and the tasks that there are.
    """
    tasks = sorted({prompt.source for prompt in prompts.prompts})
    for name in config.sampling.task_weights:
        if name in tasks:
            continue
        close = difflib.get_close_matches(name, tasks, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        shown = ", ".join(tasks[:_MAX_SHOWN]) + (", ..." if len(tasks) > _MAX_SHOWN else "")
        raise RequestError(
            f"sampling.task_weights.{name}: no prompt has {name} in data.source_column="
            f"{config.data.source_column}; {hint}There are: {shown}"
        )


def make_texts(
    config: Config, tokenizer: PreTrainedTokenizerBase, *, report: Callable[[str], None]
) -> TextSource:
    """What every optimiser step of the policy learns beside its samples.

    Args:
        report: takes lines for people.

    Raises:
        DataError: the texts cannot be read as configured.
    """
    if not config.mixes_texts:
        return NoTexts(num_ranks=config.training.num_ranks)
    texts = load_texts(config.texts, tokenizer)
    report(texts.describe())
    return TextMixture(
        texts,
        seed=config.seed,
        shuffle=config.texts.shuffle,
        plan=rank_plan(config.training),
        texts_per_step=config.texts.texts_per_step,
        steps_per_update=config.optimizer_steps_per_batch,
    )


_PROBE_TOKENS = 24


def _publisher(config: Config, system: System, inputs: _Inputs) -> Publisher:
    num_sequences = config.publish.num_probe_sequences
    probe = make_probe(
        [prompt.token_ids for prompt in inputs.prompts.prompts[:num_sequences]],
        num_sequences=num_sequences,
        num_tokens=min(_PROBE_TOKENS, config.max_sequence_tokens - 1),
        vocab_size=inputs.vocabulary,
        seed=config.seed,
    )
    tolerance = config.publish.probe_tolerance
    if tolerance is None:
        tolerance = default_tolerance(config.generation.dtype, config.training.dtype)
    return Publisher(
        source=AdapterAlone(system.learner) if config.publishes_adapter else system.learner,
        receivers=system.generators,
        transport=weight_transport(config.publish.transport),
        waiter=system.supervisor,
        probe=probe,
        settings=PublishSettings(
            bucket_bytes=config.publish.bucket_bytes,
            probe_every=config.publish.probe_every,
            probe_tolerance=tolerance,
            timeout_s=config.deadlines.publish_s,
        ),
    )


def _turns(config: Config, system: System) -> DeviceSharing:
    if config.placement.strategy == "disaggregated":
        return DedicatedDevices()
    return ColocatedDevices(
        engines=system.generators,
        trained=(system.learner,),
        waiter=system.supervisor,
        timeout_s=config.deadlines.publish_s,
    )


def _scorers(config: Config, system: System) -> Scorers:
    return Scorers(
        reference=reference_role(config, system),
        critic=system.critic or NoScores(),
        old=system.learner if config.learner_scores_old else NoScores(),
        untrained=system.learner,
        num_untrained_steps=config.algorithm.critic_warmup_steps,
        waiter=system.supervisor,
        timeout_s=config.deadlines.reference_s,
    )


def _trainer(config: Config, system: System, texts: TextSource) -> Trainer:
    return Trainer(
        builder=system.builder,
        learner=system.learner,
        critic=system.critic or NoCritic(),
        texts=texts,
        waiter=system.supervisor,
        settings=TrainerSettings(
            build_timeout_s=config.deadlines.reference_s,
            update_timeout_s=config.deadlines.update_s,
            critic_warmup_steps=config.algorithm.critic_warmup_steps,
        ),
    )


def _saver(config: Config, system: System, inputs: _Inputs, evaluator: Evaluator) -> RunCheckpoints:
    roles: dict[str, Checkpointed] = {"learner": system.learner}
    if system.critic:
        roles["critic"] = system.critic
    if system.reference and config.algorithm.reference_every > 0:
        roles["reference"] = system.reference
    checkpoints = StepCheckpoints(
        Checkpoints(Path(config.output_dir), keep_last=config.checkpoint.keep_last),
        roles=roles,
        waiter=system.supervisor,
        every_steps=config.checkpoint.every_steps,
        timeout_s=config.deadlines.checkpoint_s,
        identity=inputs.identity,
    )
    return RunCheckpoints(checkpoints, texts=inputs.texts, evaluator=evaluator)


def _rollouts(config: Config, system: System) -> RolloutFiles | NoRollouts:
    if not config.observe.rollouts:
        return NoRollouts()
    return RolloutFiles(
        system.builder,
        system.supervisor,
        Path(config.output_dir),
        timeout_s=config.deadlines.checkpoint_s,
    )


def save_models(config: Config, system: System) -> None:
    """Write model/, adapter/ where one was trained, model_ema/ where the policy was averaged."""
    _save(config, system, "model", system.learner.save_model)
    split_off_adapter(Path(config.output_dir))
    if config.training.ema_decay is not None:
        _save(config, system, "model_ema", system.learner.save_average)


def _save(config: Config, system: System, name: str, write: Callable[[Path], list[Call]]) -> None:
    """Write a folder beside its place and move it there whole."""
    final = Path(config.output_dir) / name
    partial = final.with_name(f"{name}.partial")
    system.supervisor.results(
        write(partial), phase="checkpoint", timeout_s=config.deadlines.checkpoint_s
    )
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def reference_role(config: Config, system: System) -> TokenScorer:
    """Who scores a batch as the reference."""
    if config.reference_is_policy:
        return PolicyWithoutAdapter(system.learner)
    return system.reference or NoScores()


def make_reference_updater(
    config: Config, system: System
) -> PeriodicReferenceUpdater | NoReferenceUpdate:
    """What moves the reference of a started system."""
    every_steps = config.algorithm.reference_every
    if every_steps == 0 or system.reference is None:
        return NoReferenceUpdate()
    return PeriodicReferenceUpdater(
        policy=system.learner,
        reference=system.reference,
        transport=weight_transport(config.publish.transport),
        waiter=system.supervisor,
        settings=ReferenceUpdateSettings(
            every_steps=every_steps,
            bucket_bytes=config.publish.bucket_bytes,
            timeout_s=config.deadlines.publish_s,
        ),
    )
