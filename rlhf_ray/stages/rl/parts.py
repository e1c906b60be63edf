"""The parts of the loop over a started system; each takes its own settings only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlhf_ray.atomic_file import atomic_folder
from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.learner import PolicyWithoutAdapter
from rlhf_ray.cluster.systems.rl import System
from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.data.prompts.curriculum import CurriculumSettings, CurriculumStream
from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.driver.checkpoints import StepCheckpoints
from rlhf_ray.driver.evaluation.evaluator import Evaluator
from rlhf_ray.driver.healing.parts import NoHealing
from rlhf_ray.driver.healing.trained_roles import TrainedRoles
from rlhf_ray.driver.roles import Checkpointed, TokenScorer
from rlhf_ray.driver.rollouts.early_scores import NO_EARLY_SCORES, EarlyScores
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import RolloutPipeline
from rlhf_ray.driver.rollouts.waiting_groups import FOLDER, WaitingGroups
from rlhf_ray.driver.run_checkpoints import RunCheckpoints
from rlhf_ray.driver.run_log import NoRollouts, RolloutFiles
from rlhf_ray.driver.shown_samples import NoShownSamples, ShownSamples
from rlhf_ray.driver.updates.device_sharing import (
    ColocatedDevices,
    DedicatedDevices,
    DeviceSharing,
)
from rlhf_ray.driver.updates.reference_update import (
    NoReferenceUpdate,
    PeriodicReferenceUpdater,
    ReferenceUpdateSettings,
)
from rlhf_ray.driver.updates.texts import TextSource
from rlhf_ray.driver.updates.token_scores import NoTokenScores, TokenScorers
from rlhf_ray.driver.updates.trainer import NoCritic, Trainer, TrainerSettings
from rlhf_ray.driver.updates.updated_scores import NoUpdatedScores, UpdatedScores
from rlhf_ray.models.saving.generation_ends import add_ends
from rlhf_ray.models.saving.write import check_saved
from rlhf_ray.publish.base import ADAPTER, POLICY, WeightTransport
from rlhf_ray.publish.gate import Probe
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.stages.rl.engines import RunEngines
from rlhf_ray.stages.rl.inputs import RlInputs
from rlhf_ray.stages.rl.settings import RlSettings
from rlhf_ray.stages.rl.transport import open_reference_transport
from rlhf_ray.stages.trained_part import split_off_adapter


def make_early_scores(settings: RlSettings, system: System) -> EarlyScores | None:
    """The reference that scores pieces of a batch; None where it scores whole batches."""
    if system.reference is None or not settings.reference_prompts_at_once:
        return None
    return EarlyScores(system.reference, prompts_at_once=settings.reference_prompts_at_once)


def make_pipeline(
    settings: RlSettings,
    system: System,
    engines: RunEngines,
    prompts: PromptSet,
    early: EarlyScores | None,
) -> RolloutPipeline:
    """The rollout pipeline."""
    return RolloutPipeline(
        prompts=make_stream(settings, prompts),
        generators=engines.sampling,
        rewards=system.rewards,
        waiter=system.supervisor,
        failure_budget=FailureBudget(settings.max_failure_rate),
        settings=settings.pipeline,
        early=early or NO_EARLY_SCORES,
    )


def make_stream(settings: RlSettings, prompts: PromptSet) -> PromptStream | CurriculumStream:
    """Prompts in the order of the seed, thinned out by a curriculum where there is one."""
    stream = PromptStream(prompts, seed=settings.seed, shuffle=settings.data.shuffle)
    selection = settings.pipeline.rollout_selection
    if not selection.curriculum:
        return stream
    curriculum = CurriculumSettings(
        target=selection.curriculum_target,
        min_weight=selection.curriculum_min_weight,
        recency=selection.curriculum_recency,
        success_reward=selection.success_reward,
    )
    return CurriculumStream(stream, curriculum, seed=settings.seed)


def make_publisher(
    settings: RlSettings,
    system: System,
    engines: RunEngines,
    transport: WeightTransport,
    devices: DeviceSharing,
    probe: Probe,
    trained: TrainedRoles | NoHealing,
) -> Publisher:
    """The publisher of the policy, or of its adapter alone."""
    publisher = Publisher(
        source=system.learner,
        receivers=engines.sampling,
        trials=engines.fleet,
        transport=transport,
        turns=devices,
        waiter=system.supervisor,
        probe=probe,
        settings=PublishSettings(
            what=ADAPTER if settings.publishes_adapter else POLICY,
            probe_every=settings.publish.probe_every,
            probe_tolerance=settings.probe_tolerance,
            timeout_s=settings.deadlines.publish_s,
        ),
    )
    engines.restored_by(publisher, transport, trained)
    return publisher


def make_device_sharing(settings: RlSettings, system: System) -> DeviceSharing:
    """Dedicated devices, or engines and learner in turn (the hybrid engine)."""
    if not settings.is_colocated:
        return DedicatedDevices()
    return ColocatedDevices(
        engines=system.generators,
        trained=(system.learner,),
        waiter=system.supervisor,
        timeout_s=settings.deadlines.publish_s,
    )


def make_token_scorers(
    settings: RlSettings, system: System, early: EarlyScores | None
) -> TokenScorers:
    """Reference, values and old log-probabilities of a batch."""
    scores_old = settings.old_logprobs_from is OldLogprobsFrom.LEARNER_BEFORE_UPDATE
    return TokenScorers(
        reference=early or reference_role(settings, system),
        critic=system.critic or NoTokenScores(),
        old=system.learner if scores_old else NoTokenScores(),
        untrained=system.learner,
        num_untrained_steps=settings.algorithm.critic_warmup_steps,
        waiter=system.supervisor,
        timeout_s=settings.deadlines.reference_s,
    )


def make_updated_scores(settings: RlSettings, system: System) -> UpdatedScores | NoUpdatedScores:
    """The scores after an update, for the rollout files; none where these are switched off."""
    observe = settings.observe
    if not observe.rollouts or not observe.rescore_every:
        return NoUpdatedScores()
    return UpdatedScores(
        system.learner,
        system.supervisor,
        every_steps=observe.rescore_every,
        timeout_s=settings.deadlines.reference_s,
    )


def make_trainer(
    settings: RlSettings, system: System, texts: TextSource, trained: TrainedRoles | NoHealing
) -> Trainer:
    """The update of learner and critic."""
    return Trainer(
        builder=system.builder,
        learner=system.learner,
        critic=system.critic or NoCritic(),
        texts=texts,
        waiter=system.supervisor,
        note=trained.note,
        settings=TrainerSettings(
            build_timeout_s=settings.deadlines.reference_s,
            update_timeout_s=settings.deadlines.update_s,
            critic_warmup_steps=settings.algorithm.critic_warmup_steps,
        ),
    )


def make_checkpoints(
    settings: RlSettings, system: System, inputs: RlInputs, evaluator: Evaluator
) -> RunCheckpoints:
    """Checkpoints of every role that has a state."""
    roles: dict[str, Checkpointed] = {"learner": system.learner}
    if system.critic:
        roles["critic"] = system.critic
    if system.reference and settings.algorithm.reference_every > 0:
        roles["reference"] = system.reference
    groups = WaitingGroups(
        system.builder,
        system.supervisor,
        settings=inputs.kept_settings,
        timeout_s=settings.deadlines.checkpoint_s,
    )
    roles[FOLDER] = groups
    checkpoints = StepCheckpoints(
        Checkpoints(settings.output, keep_last=settings.checkpoint.keep_last),
        roles=roles,
        waiter=system.supervisor,
        every_steps=settings.checkpoint.every_steps,
        timeout_s=settings.deadlines.checkpoint_s,
        identity=inputs.kept_settings.identity,
        settings=inputs.kept_settings.in_checkpoint(),
        in_background=settings.checkpoint.background,
    )
    return RunCheckpoints(checkpoints, texts=inputs.texts, evaluator=evaluator, groups=groups)


def make_rollout_files(
    settings: RlSettings, system: System, updated_scores: UpdatedScores | NoUpdatedScores
) -> RolloutFiles | NoRollouts:
    """The files of rollouts, unless they are switched off."""
    if not settings.observe.rollouts:
        return NoRollouts()
    return RolloutFiles(
        system.builder,
        system.supervisor,
        settings.output,
        timeout_s=settings.deadlines.checkpoint_s,
        updated_scores=updated_scores,
    )


def make_shown_samples(
    settings: RlSettings, system: System, say: Callable[[str], None]
) -> ShownSamples | NoShownSamples:
    """The answers on the terminal, where they are wanted."""
    if not settings.observe.show_samples:
        return NoShownSamples()
    return ShownSamples(
        system.builder,
        system.supervisor,
        say,
        num_samples=settings.observe.show_samples,
        timeout_s=settings.deadlines.reference_s,
    )


def reference_role(settings: RlSettings, system: System) -> TokenScorer:
    """The role that scores a batch as the reference."""
    if settings.reference_is_policy:
        return PolicyWithoutAdapter(system.learner)
    return system.reference or NoTokenScores()


def make_reference_updater(
    settings: RlSettings, system: System
) -> PeriodicReferenceUpdater | NoReferenceUpdate:
    """The updates of a reference that follows the policy."""
    every_steps = settings.algorithm.reference_every
    if every_steps == 0 or system.reference is None:
        return NoReferenceUpdate()
    return PeriodicReferenceUpdater(
        policy=system.learner,
        reference=system.reference,
        transport=open_reference_transport(settings, system),
        waiter=system.supervisor,
        settings=ReferenceUpdateSettings(
            every_steps=every_steps, timeout_s=settings.deadlines.publish_s
        ),
    )


def save_models(settings: RlSettings, system: System) -> None:
    """Write model/, adapter/ where one was trained, and model_ema/ where there is an EMA."""
    _save(settings, system, "model", system.learner.save_model)
    split_off_adapter(settings.output)
    if settings.ema_decay is not None:
        _save(settings, system, "model_ema", system.learner.save_average)
        check_saved(settings.output / "model_ema")
    check_saved(settings.output / "model")


def _save(
    settings: RlSettings, system: System, name: str, write: Callable[[Path], list[Call]]
) -> None:
    """Write a folder of the output atomically."""
    with atomic_folder(settings.output / name) as partial:
        system.supervisor.results(
            write(partial), phase="checkpoint", timeout_s=settings.deadlines.checkpoint_s
        )
        add_ends(partial, settings.end_token_ids)
