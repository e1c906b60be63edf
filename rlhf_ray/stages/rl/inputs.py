"""The inputs of a run: read, checked and resolved before any worker starts."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.batching.rank_plan import RankPlan, rank_plan
from rlhf_ray.cluster.resource_plan import ResourcePlan, describe
from rlhf_ray.cluster.roles.run_roles import RunRoles, resource_plan, run_roles, scoring_context
from rlhf_ray.cluster.roles.scoring_kinds import check_scoring, resolve_scoring
from rlhf_ray.config.batch_table import batch_table, render_rows
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import DataConfig, TextsConfig
from rlhf_ray.config.keys.listing import there_are
from rlhf_ray.config.run import Config
from rlhf_ray.data.held_out import held_out_data, shared_lines
from rlhf_ray.data.prompts.load import PromptSet, load_prompts
from rlhf_ray.data.ptx_texts import load_texts
from rlhf_ray.data.tokens.turn_ends import engine_ends
from rlhf_ray.driver.resume_changes import RunSettings
from rlhf_ray.driver.resume_choice import Resume
from rlhf_ray.driver.updates.texts import NoTexts, TextMixture, TextSource
from rlhf_ray.generation.requirements import check_head_size
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.checks.config_file import load_model_config
from rlhf_ray.models.saving.generation_ends import template_lines
from rlhf_ray.observe.progress import Progress
from rlhf_ray.planning.gpu_memory import check_gpu_memory, memory_lines, uses_gpus
from rlhf_ray.planning.storage.disk import check_disk
from rlhf_ray.publish.gate import Probe, make_probe
from rlhf_ray.records import Prompt
from rlhf_ray.rewards.load import reward_code, with_absolute_paths
from rlhf_ray.stages.inputs import check_models
from rlhf_ray.stages.model_files import check_trained_model
from rlhf_ray.stages.positions import check_sequences, context_of_model, texts_within
from rlhf_ray.stages.resume import resume_of_rl, run_settings
from rlhf_ray.stages.rl.settings import RlSettings, rl_settings
from rlhf_ray.stages.template_time import KEY as TEMPLATE_TIME
from rlhf_ray.stages.template_time import with_template_time
from rlhf_ray.stages.trained_part import check_trained, trained_identity, with_named_layers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE_TOKENS = 24
_MAX_SHOWN = 8
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RlRequest:
    """A request that passed the checks that cost nothing.

    Attributes:
        config: with paths of reward functions that every node can read.
        settings: of this run, as its checkpoints keep them.
        resume_from: the checkpoint that it goes on from, or None.
    """

    config: Config
    settings: RunSettings
    resume_from: Resume | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RlInputs:
    """All that a run was asked for, read and checked.

    Attributes:
        settings: of the parts of the run.
        roles, plan: the workers, and where they go.
        texts: pretraining texts that the policy learns in addition to its samples.
        held_out: prompts that are answered while the policy is trained; may be empty.
        probe: sequences with which every publish is proven.
        kept_settings, resume_from: see `RlRequest`.
    """

    settings: RlSettings
    roles: RunRoles
    plan: ResourcePlan
    prompts: PromptSet
    texts: TextSource
    held_out: tuple[Prompt, ...]
    probe: Probe
    kept_settings: RunSettings
    resume_from: Resume | None


def check_request(config: Config) -> RlRequest:
    """Refuse, without reading models or data, what cannot be run.

    Raises:
        RequestError: a checkpoint of another run, or a model or reward function that is missing.
    """
    config = with_template_time(config)
    algorithm = config.algorithm
    identity = {
        "seed": config.seed,
        "model.path": config.model.path,
        TEMPLATE_TIME: config.model.template_time,
        "data.path": config.data.path,
        # A setting that is off is null, as in a checkpoint of a release that did not have it.
        "texts.path": config.texts.path or None,
        "prompts_per_step": config.prompts_per_step,
        "samples_per_prompt": config.samples_per_prompt,
        "algorithm.name": algorithm.name,
        "algorithm.advantage": algorithm.advantage,
        "algorithm.reference_every": algorithm.reference_every or None,
        "algorithm.reward_normalization": _unless_none(algorithm.reward_normalization),
        "training.ema_decay": config.training.ema_decay,
        **trained_identity(config.training, config.critic),
    }
    check_models(config)
    check_disk(config)
    config = dataclasses.replace(config, reward=with_absolute_paths(config.reward))
    settings = run_settings(config, identity, code=reward_code(config.reward))
    resume_from = resume_of_rl(config, settings)
    return RlRequest(config=config, settings=settings, resume_from=resume_from)


def read_inputs(request: RlRequest, progress: Progress) -> RlInputs:
    """Read models, prompts, texts and rewards; the order is that of what depends on what.

    1. The model's path: a built-in model is made on the spot.
    2. The trained layers: names for `all-linear` come from the model.
    3. Prompts and texts: the tokenizer renders them.
    4. The reward settings: a reward model is compared with tokenizer and prompts.

    Raises:
        RequestError: an input is wrong.
        DataError: rows cannot be read.
    """
    config, report = request.config, progress.message
    plan = resource_plan(config)
    report(f"{render_rows(batch_table(config))}\n{describe(plan)}")
    for note in request.resume_from.notes if request.resume_from else ():
        report(note)
    progress.phase("model")
    path = resolve_model_path(config.model.path, seed=config.seed, report=report)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
    check_head_size(config.model, config.generation)
    _check_memory(config, report)
    check_sequences(config)
    tokenizer = check_trained_model(config, report)
    check_trained(config)
    if config.publishes_adapter:
        training = with_named_layers(config.training, config.model, seed=config.seed)
        config = dataclasses.replace(config, training=training)
    prompts = load_prompts(config.data, tokenizer, seed=config.seed)
    texts: TextSource = NoTexts(num_ranks=config.training.num_sample_groups)
    if config.mixes_texts:
        steps = config.optimizer_steps_per_batch
        plan_of_ranks = rank_plan(config.training)
        limited = texts_within(config.texts, context_of_model(config.model), path, report)
        texts = _read_texts(limited, tokenizer, config.seed, plan_of_ranks, steps, report=report)
    held_out: tuple[Prompt, ...] = ()
    if config.evaluation.every:
        source = held_out_data(config.evaluation, config.data)
        held_out = _read_held_out(source, tokenizer, prompts, config.seed, report=report)
    check_tasks(config.rollout_selection.task_weights, prompts, column=config.data.source_column)
    context = scoring_context(config)
    check_scoring(context, prompts, report=report)
    reward = resolve_scoring(context, tokenizer, prompts, report=report)
    config = dataclasses.replace(config, reward=reward)
    report(prompts.describe())
    for line in template_lines(config.model, tokenizer):
        report(line)
    return RlInputs(
        settings=rl_settings(config, end_token_ids=engine_ends(tokenizer)),
        roles=run_roles(config),
        plan=plan,
        prompts=prompts,
        texts=texts,
        held_out=held_out,
        probe=_probe(config, prompts, vocab_size=len(tokenizer)),
        kept_settings=request.settings,
        resume_from=request.resume_from,
    )


def _check_memory(config: Config, report: Callable[[str], None]) -> None:
    """Refuse GPUs that are too small, also for a model from a hub; see `gpu_memory`."""
    values = load_model_config(config.model).to_dict()
    check_gpu_memory(config, values)
    for line in memory_lines(config, values) if uses_gpus(config) else ():
        report(line)


def _probe(config: Config, prompts: PromptSet, *, vocab_size: int) -> Probe:
    num_sequences = config.publish.num_probe_sequences
    return make_probe(
        [prompt.token_ids for prompt in prompts.prompts[:num_sequences]],
        num_sequences=num_sequences,
        num_tokens=min(_PROBE_TOKENS, config.max_sequence_tokens - 1),
        vocab_size=vocab_size,
        seed=config.seed,
    )


def _unless_none(choice: str) -> str | None:
    return None if choice == "none" else choice


def check_tasks(task_weights: dict[str, float], prompts: PromptSet, *, column: str | None) -> None:
    """Refuse a weight for a task that no prompt belongs to.

    Args:
        column: the column that names a prompt's task.

    Raises:
        RequestError: names the task, and the tasks of the prompts.
    """
    tasks = sorted({prompt.source for prompt in prompts.prompts})
    for name in task_weights:
        if name in tasks:
            continue
        close = difflib.get_close_matches(name, tasks, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        shown = ", ".join(tasks[:_MAX_SHOWN]) + (", ..." if len(tasks) > _MAX_SHOWN else "")
        raise RequestError(
            f"rollout_selection.task_weights.{name}: no prompt has {name} in data.source_column="
            f"{column}; {there_are(hint, shown)}"
        )


def _read_texts(
    settings: TextsConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    plan: RankPlan,
    steps_per_update: int,
    *,
    report: Report,
) -> TextSource:
    """Texts that every optimiser step of the policy learns in addition to its samples.

    Raises:
        DataError: the texts cannot be read as configured.
    """
    texts = load_texts(settings, tokenizer)
    report(texts.describe())
    return TextMixture(
        texts,
        seed=seed,
        shuffle=settings.shuffle,
        plan=plan,
        texts_per_step=settings.texts_per_step,
        steps_per_update=steps_per_update,
    )


def _read_held_out(
    source: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    trained: PromptSet,
    seed: int,
    *,
    report: Report,
) -> tuple[Prompt, ...]:
    """The held-out prompts.

    Args:
        trained: the prompts of the run; prompts that are in both sets are counted.

    Raises:
        DataError: they cannot be read.
    """
    held_out = load_prompts(source, tokenizer, seed=seed)
    report(f"held out: {held_out.describe()}")
    for line in shared_lines(held_out, trained):
        report(line)
    return held_out.prompts
