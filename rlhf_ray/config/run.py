"""The root of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig, TextsConfig
from rlhf_ray.config.groups.deploy import ChatConfig, CompressConfig, ExportConfig, ServeConfig
from rlhf_ray.config.groups.evaluation import EvaluationConfig
from rlhf_ray.config.groups.fit import FitConfig, PreferenceConfig, RewardModelConfig
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.pipeline import PipelineConfig
from rlhf_ray.config.groups.prepare import PrepareConfig
from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
from rlhf_ray.config.groups.runtime import (
    CheckpointConfig,
    DeadlineConfig,
    ObserveConfig,
    PlacementConfig,
    PlanConfig,
    PublishConfig,
    RecoveryConfig,
)
from rlhf_ray.config.groups.training import CriticConfig, ReferenceConfig, TrainingConfig
from rlhf_ray.config.setting import setting
from rlhf_ray.config.stages import EVALUATION_STAGES, FIT_STAGES, STAGE_NAMES


@dataclass
class StageConfig:
    """The stage of this run."""

    name: str = setting("rl", "Stage to run.", choices=STAGE_NAMES)


@dataclass
class Config:
    """The whole configuration. `main.py` reads it once; a worker gets only its part."""

    recipe: str = setting("run", "Name of the recipe; run if no recipe is chosen.")
    seed: int = setting(
        0,
        "Seed of data order, sampling and initial weights.",
        minimum=0,
        maximum=2**31 - 1,
    )
    output_dir: str = setting(
        "outputs/${recipe}",
        "Output folder of the run; a relative path starts at the current folder.",
    )
    resume: str = setting(
        "auto",
        "auto: continue from the last committed checkpoint; never; or a checkpoint's folder.",
    )
    dry_run: bool = setting(False, "Validate, print the plan of the stage and exit 0.")
    num_steps: int = setting(100, "Training steps.", unit="steps", minimum=1)
    prompts_per_step: int = setting(16, "Prompts per step, over all engines.", minimum=1)
    samples_per_prompt: int = setting(8, "Responses per prompt, which form a group.", minimum=1)
    max_staleness: int = setting(
        0,
        "Staleness limit: publishes between a trained token's weights and the newest; 0 is "
        "synchronous.",
        unit="versions",
        minimum=0,
    )
    stage: StageConfig = field(default_factory=StageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    texts: TextsConfig = field(default_factory=TextsConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rollout_selection: RolloutSelectionConfig = field(default_factory=RolloutSelectionConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    deadlines: DeadlineConfig = field(default_factory=DeadlineConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)

    @property
    def is_fit(self) -> bool:
        """Whether the stage learns from examples; the trained ranks are its only workers."""
        return self.stage.name in FIT_STAGES

    @property
    def is_evaluation(self) -> bool:
        """Whether the stage evaluates models and trains none."""
        return self.stage.name in EVALUATION_STAGES

    @property
    def needs_reference(self) -> bool:
        if self.is_evaluation:
            return self.evaluation.kl != "none"
        algorithm = self.algorithm
        later = algorithm.kl_controller == "scheduled" and algorithm.kl_final > 0
        return algorithm.kl_coefficient > 0 or later

    @property
    def reference_is_policy(self) -> bool:
        """Whether the policy's ranks are the reference too, with their adapter switched off."""
        reference = self.reference
        own = reference.source == "own" or reference.path is not None
        has_adapter = self.training.lora.is_on and not self.is_evaluation
        return self.needs_reference and has_adapter and not own

    @property
    def starts_reference(self) -> bool:
        """Whether the reference is a separate role."""
        return self.needs_reference and not self.reference_is_policy

    @property
    def publishes_adapter(self) -> bool:
        """Whether engines get only the adapter of the policy."""
        return self.publish.lora == "adapter" and not self.is_evaluation

    @property
    def needs_critic(self) -> bool:
        return self.algorithm.advantage == "gae" and not self.is_evaluation

    @property
    def needs_reward_model(self) -> bool:
        return self.reward.model.path is not None and not self.is_fit

    @property
    def head_kernel(self) -> str:
        """`model.head_kernel`, with auto replaced by chunked if the run rules out the fused kernel.

        The fused operator runs on GPUs, and normalises over the whole vocabulary. At ZeRO stage 3
        it has not run on a GPU yet, so that auto does not choose it there.
        """
        trained = [] if self.is_evaluation else [self.training]
        roles = [*trained, *([self.reference] if self.starts_reference else [])]
        fits = all(role.num_gpus > 0 and role.zero_stage < 3 for role in roles)
        if self.model.head_kernel == "auto" and not (fits and self.generation.top_k == 0):
            return "chunked"
        return self.model.head_kernel

    @property
    def mixes_texts(self) -> bool:
        """Whether every optimiser step of the policy trains on texts in addition to samples."""
        return self.algorithm.ptx_coefficient > 0

    @property
    def old_logprobs_from(self) -> OldLogprobsFrom:
        """Source of the old log-probabilities of the ratio; see `algorithm.old_policy`."""
        algorithm = self.algorithm
        is_fresh = self.max_staleness == 0 and self.rollout_selection.replay_groups_per_step == 0
        auto = "learner" if is_fresh or algorithm.has_importance_correction else "generator"
        if (auto if algorithm.old_policy == "auto" else algorithm.old_policy) == "generator":
            return OldLogprobsFrom.GENERATOR
        # With one optimiser step the training pass itself has the log-probabilities of the start
        # of the step. A correction needs them before the update.
        if self.optimizer_steps_per_batch == 1 and not algorithm.has_importance_correction:
            return OldLogprobsFrom.LEARNER_IN_UPDATE
        return OldLogprobsFrom.LEARNER_BEFORE_UPDATE

    @property
    def max_sequence_tokens(self) -> int:
        """Longest prompt plus longest response."""
        return self.data.max_prompt_tokens + self.generation.max_response_tokens

    @property
    def max_engine_tokens(self) -> int:
        """Longest sequence of the run's engines, which may also judge answers or score texts."""
        judge = self.reward.judge
        longest = self.max_sequence_tokens
        if self.is_evaluation and self.examples.eval_path is not None:
            # A text that is scored must be shorter than the longest sequence of the engine.
            return max(longest, self.examples.max_tokens + 1)
        return max(longest, judge.max_sequence_tokens) if judge.is_policy else longest

    @property
    def model_of_ranks(self) -> ModelConfig:
        """The model settings of DeepSpeed roles, with the kernel of the head decided."""
        return replace(self.model, head_kernel=self.head_kernel)

    @property
    def collective_timeout_s(self) -> float:
        """Longest wait of a collective operation for the other ranks, once they are started.

        By default it is a little less than the driver waits, so that the ranks say which operation
        it was.
        """
        deadlines = self.deadlines
        if deadlines.collective_s is not None:
            return deadlines.collective_s
        longest = [deadlines.update_s, deadlines.checkpoint_s]
        if self.is_fit or self.is_evaluation:
            longest.append(deadlines.evaluate_s)
        else:
            longest += [deadlines.reference_s, deadlines.publish_s]
        if self.stage.name == "preference":
            longest.append(deadlines.reference_s)
        return 0.9 * max(longest)

    @property
    def greedy_from(self) -> int:
        """Sample index from which on answers are greedy."""
        if self.is_evaluation:
            return self.evaluation.samples
        evaluated = self.evaluation.samples if self.evaluation.every else 0
        return max(self.samples_per_prompt, evaluated)

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def optimizer_steps_per_batch(self) -> int:
        return self.algorithm.num_epochs * self.algorithm.num_mini_batches

    @property
    def total_optimizer_steps(self) -> int:
        return self.num_steps * self.optimizer_steps_per_batch
