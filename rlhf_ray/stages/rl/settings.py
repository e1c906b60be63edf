"""The settings of the parts of a run, taken from a resolved configuration once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.config.groups.data import DataConfig
from rlhf_ray.config.groups.evaluation import EvaluationConfig
from rlhf_ray.config.groups.runtime import (
    CheckpointConfig,
    DeadlineConfig,
    ObserveConfig,
    PlacementConfig,
    PublishConfig,
    RecoveryConfig,
)
from rlhf_ray.config.run import Config
from rlhf_ray.driver.evaluation.collector import CollectSettings
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings
from rlhf_ray.evaluation.evaluation_report import ReportSettings
from rlhf_ray.publish.gate import default_tolerance
from rlhf_ray.stages.evaluate.settings import collect_settings, report_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class RlSettings:
    """Settings of the parts of a run; whole groups of the configuration where a part reads them.

    Attributes:
        probe_tolerance: of the fidelity gate, in nats; decided by the dtypes where not configured.
        reference_is_policy: the policy's ranks are the reference, with their adapter off.
        learner_gpus, engine_gpus: GPUs of a learner rank and of an engine worker; 0 on CPUs.
        collect: how held-out prompts are answered.
        report: what is reported of the answers.
        end_token_ids: tokens at which the engines stop; none if they sample past the end.
    """

    run_name: str
    output: Path
    seed: int
    num_steps: int
    pipeline: PipelineSettings
    max_failure_rate: float
    data: DataConfig
    algorithm: AlgorithmConfig
    ema_decay: float | None
    old_logprobs_from: OldLogprobsFrom
    reference_is_policy: bool
    reference_prompts_at_once: int
    publishes_adapter: bool
    publish: PublishConfig
    probe_tolerance: float
    placement: PlacementConfig
    learner_gpus: float
    engine_gpus: float
    checkpoint: CheckpointConfig
    deadlines: DeadlineConfig
    recovery: RecoveryConfig
    observe: ObserveConfig
    evaluation: EvaluationConfig
    collect: CollectSettings
    report: ReportSettings
    end_token_ids: tuple[int, ...]

    @property
    def is_colocated(self) -> bool:
        """Whether engines and learner share devices and take turns."""
        return self.placement.strategy == "colocated"


def rl_settings(config: Config, *, end_token_ids: tuple[int, ...] = ()) -> RlSettings:
    """The settings of a run with this resolved configuration."""
    output = Path(config.output_dir)
    tolerance = config.publish.probe_tolerance
    if tolerance is None:
        tolerance = default_tolerance(config.generation.dtype, config.training.dtype)
    measures_kl = config.evaluation.kl != "none"
    return RlSettings(
        run_name=config.recipe or output.name,
        output=output,
        seed=config.seed,
        num_steps=config.num_steps,
        pipeline=PipelineSettings(
            num_steps=config.num_steps,
            prompts_per_step=config.prompts_per_step,
            samples_per_prompt=config.samples_per_prompt,
            num_greedy=config.algorithm.num_greedy,
            max_staleness=config.max_staleness,
            generate_timeout_s=config.deadlines.generate_s,
            rollout_selection=config.rollout_selection,
            reward_tolerance=config.algorithm.reward_tolerance,
        ),
        max_failure_rate=config.reward.max_failure_rate,
        data=config.data,
        algorithm=config.algorithm,
        ema_decay=config.training.ema_decay,
        old_logprobs_from=config.old_logprobs_from,
        reference_is_policy=config.reference_is_policy,
        reference_prompts_at_once=config.reference.prompts_at_once,
        publishes_adapter=config.publishes_adapter,
        publish=config.publish,
        probe_tolerance=tolerance,
        placement=config.placement,
        learner_gpus=config.training.num_gpus,
        engine_gpus=config.generation.num_gpus,
        checkpoint=config.checkpoint,
        deadlines=config.deadlines,
        recovery=config.recovery,
        observe=config.observe,
        evaluation=config.evaluation,
        collect=collect_settings(
            config.evaluation,
            config.generation,
            greedy_from=config.greedy_from,
            max_failure_rate=config.reward.max_failure_rate,
            timeout_s=config.deadlines.evaluate_s,
            measures_kl=measures_kl,
            with_text=False,
        ),
        report=report_settings(config.evaluation, seed=config.seed),
        end_token_ids=() if config.generation.ignore_eos else end_token_ids,
    )
