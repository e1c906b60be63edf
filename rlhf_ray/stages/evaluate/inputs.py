"""The inputs of an evaluation, read and checked before any worker starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_ray.cluster.roles.base import Role
from rlhf_ray.cluster.roles.harness import HarnessSettings, harness_role
from rlhf_ray.cluster.roles.rewards import ScoringContext
from rlhf_ray.cluster.roles.run_roles import RunRoles, run_roles, scoring_context
from rlhf_ray.cluster.roles.scoring_kinds import check_scoring, resolve_scoring
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig
from rlhf_ray.config.groups.evaluation import EvaluationConfig
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.config.run import Config
from rlhf_ray.data.examples import load_demonstrations
from rlhf_ray.data.held_out import held_out_data
from rlhf_ray.data.prompts.load import PromptSet, load_prompts
from rlhf_ray.driver.evaluation.collector import CollectSettings
from rlhf_ray.evaluation.evaluation_report import ReportSettings
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.checks.chat_template import check_chat_template
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.location import check_location
from rlhf_ray.models.saving.generation_ends import template_lines
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.stages.evaluate.models import (
    about_model,
    candidate_models,
    check_engine_models,
    demonstrations_within,
)
from rlhf_ray.stages.evaluate.settings import (
    collect_settings,
    harness_tasks,
    report_settings,
    sampling_facts,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One model that is evaluated.

    Attributes:
        prompts, demonstrations: as the model's tokenizer and template render them; the same rows
            for every candidate. There may be no demonstrations.
        engines: the engines of this model.
        harness: lm-evaluation-harness on this model; None where no standard task is asked for.
    """

    name: str
    prompts: PromptSet
    demonstrations: tuple[LabelledTokens, ...]
    engines: Role
    harness: Role | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationInputs:
    """All that an evaluation was asked for, read and checked.

    Attributes:
        reward, baseline_model: settings of the scorers; the policy of their tokens is the baseline.
        roles: the roles that score, with the engines of the baseline.
        candidates: in the order in which they are evaluated.
        baseline: name of the candidate that the others are compared with.
        collect: how prompts are answered.
        report: what is reported of the answers.
        prompts_facts, sampling_facts: for the report.
    """

    reward: RewardConfig
    baseline_model: ModelConfig
    roles: RunRoles
    candidates: tuple[Candidate, ...]
    baseline: str
    collect: CollectSettings
    report: ReportSettings
    prompts_facts: dict[str, Any]
    sampling_facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """A candidate whose engines are not decided yet."""

    name: str
    model: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    demonstrations: tuple[LabelledTokens, ...]


def read_inputs(config: Config, *, report: Report) -> EvaluationInputs:
    """Read every model of `evaluation.models` with its prompts, and what scores all answers.

    Args:
        report: takes lines for people.

    Raises:
        RequestError: a model cannot be loaded, or a scorer cannot be used with it.
        DataError: the prompts or the demonstrations cannot be read.
    """
    evaluation, seed = config.evaluation, config.seed
    source = held_out_data(evaluation, config.data)
    reference_path, reference = _reference(
        config.model, config.reference.path, seed, is_read=config.needs_reference, report=report
    )
    models = candidate_models(evaluation.models, config.model, seed, report)
    config = dataclasses.replace(
        config,
        examples=demonstrations_within(models, config.examples, report),
        reference=dataclasses.replace(config.reference, path=reference_path),
    )
    check_engine_models(models, config)
    read = _read_all(models, config.examples, source, reference, seed, report)
    candidates = _same_rows(read, report)
    baseline = next(c for c in candidates if c.name == evaluation.baseline_name)
    contexts = [
        scoring_context(dataclasses.replace(config, model=candidate.model))
        for candidate in candidates
    ]
    reward = _resolved_reward(contexts, candidates, report)
    config = dataclasses.replace(config, reward=reward, model=baseline.model)
    check_scoring(scoring_context(config), baseline.prompts, report=report)
    return EvaluationInputs(
        reward=config.reward,
        baseline_model=baseline.model,
        roles=run_roles(config),
        candidates=tuple(
            _with_engines(
                candidate,
                run_roles(dataclasses.replace(config, model=candidate.model)),
                _harness(config.generation, candidate.model, evaluation, seed),
            )
            for candidate in candidates
        ),
        baseline=evaluation.baseline_name,
        collect=collect_settings(
            evaluation,
            config.generation,
            greedy_from=config.greedy_from,
            max_failure_rate=config.reward.max_failure_rate,
            timeout_s=config.deadlines.evaluate_s,
            measures_kl=True,
            with_text=True,
        ),
        report=report_settings(evaluation, seed=seed),
        prompts_facts=_prompts_facts(source, candidates[0].prompts),
        sampling_facts=sampling_facts(evaluation, config.generation),
    )


def _prompts_facts(source: DataConfig, prompts: PromptSet) -> dict[str, Any]:
    return {"path": source.path, "split": source.split, "num_prompts": len(prompts.prompts)}


def _read_all(
    models: Mapping[str, ModelConfig],
    examples: ExamplesConfig,
    source: DataConfig,
    reference: PreTrainedTokenizerBase | None,
    seed: int,
    report: Report,
) -> list[_Read]:
    found: list[_Read] = []
    for name, model in models.items():
        with about_model(name):
            tokenizer = load_tokenizer(model)
            if source.apply_chat_template:
                check_chat_template(tokenizer, model.tokenizer_path or model.path)
            read = _Read(
                name=name,
                model=model,
                tokenizer=tokenizer,
                prompts=load_prompts(source, tokenizer, seed=seed),
                demonstrations=load_eval_demonstrations(examples, tokenizer, seed=seed),
            )
            _check_reference(read, reference)
            for line in template_lines(model, tokenizer):
                report(f"{name}: {line}")
            found.append(read)
    return found


def _harness(
    generation: GenerationConfig, model: ModelConfig, evaluation: EvaluationConfig, seed: int
) -> HarnessSettings:
    return HarnessSettings(
        generation=generation, model=model, tasks=harness_tasks(evaluation), seed=seed
    )


def _with_engines(read: _Read, roles: RunRoles, harness: HarnessSettings) -> Candidate:
    engines = roles.named("generator")
    has_tasks = bool(harness.tasks.names)
    return Candidate(
        name=read.name,
        prompts=read.prompts,
        demonstrations=read.demonstrations,
        engines=engines,
        harness=harness_role(harness, engines.resources) if has_tasks else None,
    )


def load_eval_demonstrations(
    examples: ExamplesConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> tuple[LabelledTokens, ...]:
    """The demonstrations of `examples.eval_path`; none where it is not set."""
    if examples.eval_path is None:
        return ()
    alone = dataclasses.replace(
        examples,
        path=examples.eval_path,
        split=examples.eval_split or examples.split,
        eval_path=None,
        eval_split=None,
        eval_share=0.0,
    )
    return tuple(load_demonstrations(alone, tokenizer, seed=seed).train)


def _same_rows(candidates: Sequence[_Read], report: Report) -> list[_Read]:
    """Keep the prompts that are short enough for every candidate."""
    common = set.intersection(*({p.prompt_id for p in c.prompts.prompts} for c in candidates))
    if not common:
        raise RequestError(
            "no held-out prompt is short enough for every model; raise data.max_prompt_tokens"
        )
    report(candidates[0].prompts.describe())
    same = []
    for candidate in candidates:
        kept = tuple(p for p in candidate.prompts.prompts if p.prompt_id in common)
        if left_out := len(candidate.prompts.prompts) - len(kept):
            report(f"{candidate.name}: {left_out} prompts are left out that another model lacks")
        prompts = dataclasses.replace(candidate.prompts, prompts=kept)
        same.append(dataclasses.replace(candidate, prompts=prompts))
    return same


def _resolved_reward(
    contexts: Sequence[ScoringContext], candidates: Sequence[_Read], report: Report
) -> RewardConfig:
    """The reward settings with scorers that understand every candidate."""
    rewards = []
    for context, candidate in zip(contexts, candidates, strict=True):
        with about_model(candidate.name):
            rewards.append(
                resolve_scoring(context, candidate.tokenizer, candidate.prompts, report=report)
            )
    # A reward model that has to read the texts of one candidate reads those of all.
    read_as_text = [reward for reward in rewards if reward.model.foreign_tokens == "text"]
    return (read_as_text or rewards)[0]


def _reference(
    model: ModelConfig, path: str | None, seed: int, *, is_read: bool, report: Report
) -> tuple[str | None, PreTrainedTokenizerBase | None]:
    """The folder of the reference, and its tokenizer where a divergence is measured (`is_read`)."""
    if path is None:
        return None, None
    path = resolve_model_path(path, seed=seed, report=report)
    if not is_read:
        return path, None
    check_location(path, "reference.path", needs_config=True)
    return path, load_tokenizer(dataclasses.replace(model, path=path))


def _check_reference(candidate: _Read, reference: PreTrainedTokenizerBase | None) -> None:
    if reference is not None and candidate.tokenizer.get_vocab() != reference.get_vocab():
        raise RequestError(
            "its vocabulary is not that of reference.path, so that there is no divergence between "
            "them; leave the model out, or set evaluation.kl to none"
        )
