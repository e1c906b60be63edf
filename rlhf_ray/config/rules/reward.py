"""Rules of the process of reward functions, the reward model, the reward service and the judge."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf_ray.config.rules.generation import cache_problems, gpu_problems
from rlhf_ray.config.rules.rule import Rule, address_problems
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import EVALUATION_STAGES, SCORING_STAGES

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _environment(config: Config) -> Iterator[str]:
    tokens = {
        config.reward.http.token_variable: "reward.http.token_variable",
        config.serve.token_variable: "serve.token_variable",
    }
    for name in config.reward.environment:
        where = f"reward.environment=[{name}]"
        if not _VARIABLE.fullmatch(name):
            yield f"{where}: is not the name of an environment variable; give names without values"
        elif name.startswith("RAY_"):
            yield (
                f"{where}: a reward function with Ray's variables can join the cluster and run "
                f"anything there; remove the name"
            )
        elif name in tokens:
            yield (
                f"{where}: is the token of {tokens[name]}, which no reward function needs; remove "
                f"the name, or keep the functions' token in another variable"
            )


def _sandbox(config: Config) -> Iterator[str]:
    reward = config.reward
    if reward.sandbox != "none":
        return
    for key, value in (
        ("reward.sandbox_network", reward.sandbox_network and "true"),
        ("reward.sandbox_read", reward.sandbox_read),
    ):
        if value:
            yield (
                f"{key}={value}: there is no sandbox with reward.sandbox=none; set "
                f"reward.sandbox=bwrap, or remove the key"
            )


_FUNCTION_RULES: tuple[Rule, ...] = (
    Rule(
        about="`reward.environment` has names of variables, and neither Ray's nor those of tokens.",
        keys=("reward.environment", "reward.http.token_variable", "serve.token_variable"),
        problems=_environment,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`reward.sandbox_network` and `reward.sandbox_read` need `reward.sandbox`.",
        keys=("reward.sandbox", "reward.sandbox_network", "reward.sandbox_read"),
        problems=_sandbox,
        stages=SCORING_STAGES,
    ),
)


def _moments(config: Config) -> Iterator[str]:
    model = config.reward.model
    if not config.needs_reward_model:
        return
    given = {"mean": model.mean, "standard_deviation": model.standard_deviation}
    named = [f"reward.model.{name}={value:g}" for name, value in given.items() if value is not None]
    if named and not model.normalize:
        yield (
            f"reward.model.normalize=false: the scores are not normalised, but {named[0]}; set "
            f"normalize to true, or mean and standard_deviation to null"
        )
    elif len(named) == 1:
        yield (
            f"{named[0]}: normalisation needs both mean and standard_deviation; set both, or set "
            f"this one to null"
        )


def _stage(config: Config) -> Iterator[str]:
    stage = config.reward.model.zero_stage
    if config.needs_reward_model and stage in (1, 2):
        yield (
            f"reward.model.zero_stage={stage}: a frozen model has neither optimizer states nor "
            f"gradients to shard; use 0, a whole model on every rank, or 3 to shard its "
            f"parameters over the ranks"
        )


_MODEL_RULES: tuple[Rule, ...] = (
    Rule(
        about="`reward.model.mean` and `reward.model.standard_deviation` are given together, and "
        "only with `reward.model.normalize`.",
        keys=(
            "reward.model.path",
            "reward.model.normalize",
            "reward.model.mean",
            "reward.model.standard_deviation",
        ),
        problems=_moments,
        stages=(*SCORING_STAGES, "serve_reward"),
    ),
    Rule(
        about="`reward.model.zero_stage` is 0, a whole model on every rank, or 3.",
        keys=("reward.model.path", "reward.model.zero_stage"),
        problems=_stage,
        stages=SCORING_STAGES,
    ),
)


def _address(config: Config) -> Iterator[str]:
    url = config.reward.url
    if url is not None:
        yield from address_problems("reward.url", url, token_key="reward.http.token_variable")


def _service_deadline(config: Config) -> Iterator[str]:
    http, generate_s = config.reward.http, config.deadlines.generate_s
    if config.reward.url is not None and http.deadline_s > generate_s:
        yield (
            f"reward.http.deadline_s={http.deadline_s}: is more than the time for a whole "
            f"batch (deadlines.generate_s={generate_s}); lower deadline_s or raise generate_s"
        )


_HTTP_RULES: tuple[Rule, ...] = (
    Rule(
        about="`reward.url` is an address without user, password, query or fragment.",
        keys=("reward.url",),
        problems=_address,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`reward.http.deadline_s` is at most `deadlines.generate_s`.",
        keys=("reward.url", "reward.http.deadline_s", "deadlines.generate_s"),
        problems=_service_deadline,
        stages=SCORING_STAGES,
    ),
)


def _rubric(config: Config) -> Iterator[str]:
    judge = config.reward.judge
    if judge.model is None:
        return
    if "{response}" not in judge.asked:
        yield (
            "reward.judge.rubric: has no {response}, so the judge would not see the response; "
            "add {response} where the response belongs"
        )
    if "{answer}" in judge.asked and config.data.answer_column is None:
        yield (
            "reward.judge.rubric: has {answer}, but data.answer_column=null; name the column with "
            "the reference answer, or remove {answer}"
        )


def _pattern(config: Config) -> Iterator[str]:
    judge = config.reward.judge
    if judge.model is None:
        return
    try:
        groups = re.compile(judge.pattern).groups
    except re.error as error:
        yield (
            f"reward.judge.pattern={judge.pattern}: is not a regular expression ({error}); fix "
            f"it, and put it in quotes on the command line"
        )
        return
    if not groups:
        yield (
            f"reward.judge.pattern={judge.pattern}: has no group; put the score in parentheses, as "
            f"in Score: ([0-9]+)"
        )


def _range(config: Config) -> Iterator[str]:
    judge = config.reward.judge
    if judge.model is not None and judge.min_score >= judge.max_score:
        yield (
            f"reward.judge.min_score={judge.min_score:g}: must be less than "
            f"reward.judge.max_score={judge.max_score:g}; lower min_score or raise max_score"
        )


def _samples(config: Config) -> Iterator[str]:
    judge = config.reward.judge
    if judge.model is not None and judge.num_samples > 1 and judge.temperature == 0:
        yield (
            f"reward.judge.num_samples={judge.num_samples}: with reward.judge.temperature=0 all "
            f"judgements are the same; set num_samples to 1, or temperature above 0"
        )


def _deadline(config: Config) -> Iterator[str]:
    judge, generate_s = config.reward.judge, config.deadlines.generate_s
    if judge.model is not None and judge.timeout_s > generate_s:
        yield (
            f"reward.judge.timeout_s={judge.timeout_s}: is more than the time for a whole "
            f"batch (deadlines.generate_s={generate_s}); lower timeout_s or raise generate_s"
        )


def _devices(config: Config) -> Iterator[str]:
    judge = config.reward.judge
    if judge.is_policy and config.placement.strategy == "colocated":
        yield (
            "reward.judge.model=policy: with placement=colocated the engines sleep while the "
            "learner computes, when judgements may still be pending; use placement=disaggregated, "
            "or a separate judge"
        )
    if not judge.has_engines:
        return
    yield from cache_problems("reward.judge", judge)
    yield from gpu_problems("reward.judge", judge)


def _self_judgement(config: Config) -> Iterator[str]:
    if config.reward.judge.is_policy:
        yield (
            "reward.judge.model=policy: every model would judge itself; name the folder of one "
            "judge for all models"
        )


_SWITCH = "reward.judge.model"

_JUDGE_RULES: tuple[Rule, ...] = (
    Rule(
        about="`reward.judge.rubric` has `{response}`; `{answer}` needs `data.answer_column`.",
        keys=(_SWITCH, "reward.judge.rubric", "data.answer_column"),
        problems=_rubric,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`reward.judge.pattern` is a regular expression with a group.",
        keys=(_SWITCH, "reward.judge.pattern"),
        problems=_pattern,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`reward.judge.min_score` is less than `reward.judge.max_score`.",
        keys=(_SWITCH, "reward.judge.min_score", "reward.judge.max_score"),
        problems=_range,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`reward.judge.num_samples` above 1 needs `reward.judge.temperature` above 0.",
        keys=(_SWITCH, "reward.judge.num_samples", "reward.judge.temperature"),
        problems=_samples,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`reward.judge.timeout_s` is at most `deadlines.generate_s`.",
        keys=(_SWITCH, "reward.judge.timeout_s", "deadlines.generate_s"),
        problems=_deadline,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`reward.judge.model=policy` needs `placement=disaggregated`; a separate judge needs "
        "`reward.judge.kv_cache_gib` without a GPU, and whole GPUs for several ranks.",
        keys=(
            _SWITCH,
            "reward.judge.num_gpus",
            "reward.judge.kv_cache_gib",
            "reward.judge.tensor_parallel_size",
            "placement.strategy",
        ),
        problems=_devices,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`stage=evaluate`: `reward.judge.model` is not `policy`.",
        keys=(_SWITCH,),
        problems=_self_judgement,
        stages=EVALUATION_STAGES,
    ),
)

REWARD_RULES: tuple[Rule, ...] = _FUNCTION_RULES + _MODEL_RULES + _HTTP_RULES + _JUDGE_RULES
