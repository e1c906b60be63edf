"""A language model that judges answers, as a kind of reward (`reward.judge.model`).

The judge has its own engines, or the run's engines judge their own answers (`policy`). A scorer
with the judge's tokenizer asks the engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.resource_plan import Resources
from rlhf_ray.cluster.roles.base import Role, Starting, call_of
from rlhf_ray.cluster.roles.generator import EngineSettings, engines_role
from rlhf_ray.cluster.roles.rewards import (
    AsyncScorerActor,
    ReplicatedScorer,
    Report,
    Scoring,
    ScoringContext,
    ScoringKind,
)
from rlhf_ray.config.errors import RequestError

if TYPE_CHECKING:
    from rlhf_ray.config.groups.generation import GenerationConfig
    from rlhf_ray.config.groups.model import ModelConfig
    from rlhf_ray.config.groups.reward import JudgeConfig
    from rlhf_ray.data.prompts.load import PromptSet

_ENGINES, _SCORER = "judge", "judge_scorer"
# The scorer waits for the engines nearly all the time.
_SCORER_CPUS = 0.05
# Prompts with which the rubric is filled in on trial.
_NUM_TRIED = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSettings:
    """Settings of the scorer; see `rewards.judge.JudgeScorer`.

    Attributes:
        source: where the judge's tokenizer comes from.
    """

    judge: JudgeConfig
    source: ModelConfig
    seed: int


def _scoring(context: ScoringContext) -> Scoring | None:
    judge = context.reward.judge
    if judge.model is None:
        return None
    source = judge_source(judge, context.model)
    settings = JudgeSettings(judge=judge, source=source, seed=context.seed)
    asked = _ENGINES if judge.has_engines else "generator"

    def start(members: Sequence[Any], starting: Starting) -> list[Call]:
        engines = [engine.handle for engine in starting.by_role[asked]]
        return [call_of(m, m.handle.start.remote(engines)) for m in members]

    scorer = Role(
        resources=Resources(role=_SCORER, num_actors=1, num_cpus=_SCORER_CPUS, num_gpus=0.0),
        actor_class=JudgeActor,
        settings=lambda _: settings,
        start=start,
    )
    engines = (_engines(context, source),) if judge.has_engines else ()
    return Scoring(
        roles=(*engines, scorer), pool=lambda by_role: ReplicatedScorer(by_role[_SCORER])
    )


def _engines(context: ScoringContext, source: ModelConfig) -> Role:
    """The judge's own engines; what they sample with travels with each question."""
    judge = context.reward.judge
    settings = EngineSettings(
        generation=_engine_config(judge, context.generation),
        model=source,
        max_sequence_tokens=judge.max_sequence_tokens,
        greedy_from=0,
        request_timeout_s=judge.timeout_s,
        answers_by_files=True,
    )
    # Engines on one CPU node take their places by index: the judge's come after the run's.
    return engines_role(_ENGINES, settings, first_index=context.generation.num_engines)


def _engine_config(judge: JudgeConfig, generation: GenerationConfig) -> GenerationConfig:
    """The engine settings of the run, except where the judge's group has its own."""
    longest = judge.max_sequence_tokens
    return replace(
        generation,
        **judge.engine_values(),
        max_num_batched_tokens=max(generation.max_num_batched_tokens, longest, judge.max_num_seqs),
        pipeline_parallel_size=1,
        data_parallel_size=1,
        extra_engine_args={},
    )


def judge_source(judge: JudgeConfig, model: ModelConfig) -> ModelConfig:
    """The source of the judge and its tokenizer; the judge is loaded as the policy is."""
    assert judge.model is not None, "without a model there is no judge"
    if judge.is_policy:
        return model
    return replace(model, path=judge.model, tokenizer_path=None, chat_template=None)


def check_judge(context: ScoringContext, prompts: PromptSet, report: Report) -> None:
    """Refuse a judge that cannot be loaded or asked; a run without a judge passes.

    Raises:
        RequestError: the reason.
    """
    from rlhf_ray.data.rows import DataError
    from rlhf_ray.generation.requirements import check_head_size
    from rlhf_ray.models.checks.chat_template import check_chat_template
    from rlhf_ray.models.loading import load_tokenizer
    from rlhf_ray.rewards.rubric import NoScore, Rubric

    judge = context.reward.judge
    if judge.model is None:
        return
    source = judge_source(judge, context.model)
    if judge.has_engines:
        engine = _engine_config(judge, context.generation)
        check_head_size(source, engine, key="reward.judge.model")
    _check_positions(judge, source)
    tokenizer = load_tokenizer(source)
    check_chat_template(tokenizer, source.path)
    rubric = Rubric(judge, tokenizer)
    longest = 0
    for prompt in prompts.prompts[:_NUM_TRIED]:
        try:
            longest = max(longest, len(rubric.question(prompt, "")))
        except (NoScore, DataError) as error:
            raise RequestError(f"reward.judge: prompt {prompt.prompt_id}: {error}") from error
    report(
        f"the judge is {judge.model}; a question to it has {longest} tokens and the response, of "
        f"at most {judge.max_prompt_tokens}"
    )


def _check_positions(judge: JudgeConfig, source: ModelConfig) -> None:
    from rlhf_ray.models.checks.config_file import load_model_config
    from rlhf_ray.models.context import context_of

    context = context_of(load_model_config(source, key="reward.judge.model"))
    if context is not None and judge.max_sequence_tokens > context:
        raise RequestError(
            f"reward.judge.max_prompt_tokens={judge.max_prompt_tokens} and "
            f"reward.judge.max_judgement_tokens={judge.max_judgement_tokens}: {source.path} reads "
            f"at most {context} tokens; lower them"
        )


JUDGE = ScoringKind(name="judge", scoring=_scoring, check=check_judge)


class JudgeActor(AsyncScorerActor):
    """The scorer that asks engines for judgements: the judge's engines, or the run's."""

    def __init__(self, settings: JudgeSettings) -> None:
        super().__init__()
        self._settings = settings

    async def start(self, engines: Sequence[Any]) -> None:
        """Load the tokenizer; `engines`: handles of `GeneratorActor` actors."""
        from rlhf_ray.models.loading import load_tokenizer
        from rlhf_ray.rewards.judge import JudgeScorer

        settings = self._settings
        self._worker = JudgeScorer(
            judge=settings.judge,
            tokenizer=load_tokenizer(settings.source),
            engines=[_RemoteEngine(engine) for engine in engines],
            seed=settings.seed,
        )


class _RemoteEngine:
    """A `JudgeEngine` in another actor."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def complete(self, asked: Sequence[Any], *, timeout_s: float) -> Sequence[Any]:
        return await self._handle.complete.remote(asked, timeout_s)
