"""Rules of evaluation: by itself, and while a policy is trained."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.rule import RL_STAGES, SCORER_SWITCHES, Rule
from rlhf_ray.config.run import Config
from rlhf_ray.rewards.entries import read_functions

_ALONE = ("evaluate",)


def _runs(config: Config) -> bool:
    return config.stage.name == "evaluate" or config.evaluation.every > 0


def _models(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    models = evaluation.models
    if not models:
        yield (
            "evaluation.models is empty: name what is evaluated, as in "
            "evaluation.models.sft=outputs/sft/model evaluation.models.rl=outputs/rl/model"
        )
        return
    for name, path in models.items():
        if not path.strip():
            yield f"evaluation.models.{name} is empty: name a folder or a hub model"
    if evaluation.baseline is not None and evaluation.baseline not in models:
        yield (
            f"evaluation.baseline={evaluation.baseline}: is none of evaluation.models; there are "
            f"{', '.join(models)}"
        )


def _inputs(config: Config) -> Iterator[str]:
    if not (config.data.path or config.evaluation.path):
        yield (
            "data.path is empty: name the held-out prompts, a file, a folder, a hub data set or "
            "package.module:iterable"
        )
    if not (config.reward.functions or config.reward.scorers):
        yield (
            "reward.functions is empty: answers are scored as in stage=rl; name at least one "
            "function, or reward.model.path, reward.url or reward.judge.model"
        )


def _judge(config: Config) -> Iterator[str]:
    if config.reward.judge.is_policy:
        yield (
            "reward.judge.model=policy: every model would judge itself; name the folder of one "
            "judge for all of them"
        )


def _held_out(config: Config) -> Iterator[str]:
    evaluation, data = config.evaluation, config.data
    if evaluation.every == 0:
        return
    same_path = evaluation.path in (None, data.path)
    same_split = evaluation.split in (None, data.split)
    if same_path and same_split:
        yield (
            f"evaluation.every={evaluation.every}: the held-out prompts would be those that are "
            f"trained on (data.path={data.path}); name others in evaluation.path, or in "
            f"evaluation.split"
        )


def _answers(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    if not _runs(config):
        return
    if evaluation.answers_per_prompt == 0:
        yield (
            "evaluation.samples=0: with evaluation.greedy=false there is no answer to evaluate; "
            "set the one above 0 or the other to true"
        )
    for k in evaluation.pass_at_k:
        if not 1 <= k <= evaluation.samples:
            yield (
                f"evaluation.pass_at_k={evaluation.pass_at_k}: {k} of evaluation.samples="
                f"{evaluation.samples} sampled answers cannot be chosen; raise samples to at "
                f"least {max(k, 1)}, or leave {k} out"
            )


def _parts(config: Config) -> Iterator[str]:
    if not _runs(config):
        return
    parts = _part_names(config)
    if not parts:
        return
    names = ["reward", *parts]
    for key in ("win_by", "success_by"):
        value = vars(config.evaluation)[key]
        if value not in names:
            yield (
                f"evaluation.{key}={value}: is no part of the reward; there are {', '.join(names)}"
            )


def _kl(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    if evaluation.kl == "none" or not _runs(config):
        return
    if evaluation.samples == 0:
        yield (
            f"evaluation.kl={evaluation.kl}: is measured on sampled answers, and "
            f"evaluation.samples=0; raise that, or set kl to none"
        )
    if not config.needs_reference:
        yield (
            f"evaluation.kl={evaluation.kl}: the run has no reference (algorithm.kl_coefficient="
            f"{config.algorithm.kl_coefficient}); set evaluation.kl to none, or the coefficient "
            f"above 0"
        )
    if config.reference_is_policy and config.placement.strategy == "colocated":
        yield (
            f"evaluation.kl={evaluation.kl}: the reference is the policy without its adapter, "
            f"which has no device while the engines answer (placement=colocated); choose "
            f"reference.source=own, or set evaluation.kl to none"
        )
    if config.is_evaluation and config.reference.path is None:
        yield (
            f"evaluation.kl={evaluation.kl}: reference.path is null; name the model that the "
            f"divergence is from, or set evaluation.kl to none"
        )


def _best(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    if evaluation.every == 0 or not evaluation.keep_best or evaluation.best_metric is None:
        return
    names = _metric_names(config)
    if evaluation.best_metric not in names:
        close = difflib.get_close_matches(evaluation.best_metric, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        yield (
            f"evaluation.best_metric={evaluation.best_metric}: is not measured; {hint}There are "
            f"{', '.join(names)}"
        )


def _metric_names(config: Config) -> list[str]:
    """What every evaluation of a policy in training measures."""
    evaluation = config.evaluation
    names = []
    for mode, is_on in (("greedy", evaluation.greedy), ("sampled", evaluation.samples > 0)):
        own = ["reward/mean", "success_share", "response/length_mean"]
        own += ["response/truncated_fraction", "repeated_share", "distinct_1", "distinct_2"]
        own += [f"reward/{name}" for name in _part_names(config)]
        if mode == "sampled":
            own += [f"pass_at_{k}" for k in evaluation.pass_at_k]
        names += [f"evaluation/{mode}/{name}" for name in own] if is_on else []
    return [*names, *(["evaluation/kl/reference"] if evaluation.kl != "none" else [])]


def _part_names(config: Config) -> list[str]:
    """Of the reward; none where it is not understood, of which another rule speaks."""
    scorers = config.reward.scorers
    try:
        functions = read_functions(config.reward.functions, scorers)
    except RequestError:
        return []
    return [*(f.name for f in functions), *(scorer.name for scorer in scorers)]


def _harness(config: Config) -> Iterator[str]:
    evaluation, template = config.evaluation, config.model.chat_template
    if evaluation.lm_eval_tasks and evaluation.lm_eval_chat and template is not None:
        yield (
            f"model.chat_template={template}: lm-evaluation-harness knows the template of a "
            f"model's tokenizer alone; set it to null, or evaluation.lm_eval_chat to false"
        )


def _whole_demonstrations(config: Config) -> Iterator[str]:
    tokens, longest = config.generation.max_num_batched_tokens, config.examples.max_tokens
    if config.examples.eval_path is not None and tokens <= longest:
        yield (
            f"generation.max_num_batched_tokens={tokens}: the engine scores whole demonstrations "
            f"of up to examples.max_tokens={longest}; raise it to at least {longest + 1}, or lower "
            f"examples.max_tokens"
        )


def _greedy_baseline(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    has_greedy = evaluation.every > 0 and config.algorithm.num_greedy > 0
    if has_greedy and evaluation.samples > config.samples_per_prompt:
        yield (
            f"evaluation.samples={evaluation.samples}: with algorithm.advantage="
            f"{config.algorithm.advantage} an engine's answers from samples_per_prompt="
            f"{config.samples_per_prompt} on are greedy; lower it to at most that"
        )


_PART_KEYS = ("reward.model.name", "reward.http.name", "reward.judge.name")
_SAMPLES = ("evaluation.samples", "evaluation.every")
_REWARDS = ("reward.functions", *SCORER_SWITCHES)

EVALUATION_RULES: tuple[Rule, ...] = (
    Rule(
        about="`stage=evaluate`: `evaluation.models` has at least one model, and "
        "`evaluation.baseline` is one of them.",
        keys=("evaluation.models", "evaluation.baseline"),
        problems=_models,
        stages=_ALONE,
    ),
    Rule(
        about="`stage=evaluate`: `data.path` or `evaluation.path` is not empty, and there is a "
        "reward.",
        keys=("data.path", "evaluation.path", *_REWARDS),
        problems=_inputs,
        stages=_ALONE,
    ),
    Rule(
        about="`stage=evaluate`: `reward.judge.model` is not `policy`.",
        keys=("reward.judge.model",),
        problems=_judge,
        stages=_ALONE,
    ),
    Rule(
        about="`evaluation.every` needs held-out prompts: `evaluation.path` or "
        "`evaluation.split` other than those of `data`.",
        keys=("evaluation.every", "evaluation.path", "evaluation.split", "data.path", "data.split"),
        problems=_held_out,
    ),
    Rule(
        about="An evaluation has answers: `evaluation.greedy` or `evaluation.samples`; every k of "
        "`evaluation.pass_at_k` is from 1 to `evaluation.samples`.",
        keys=("evaluation.greedy", "evaluation.pass_at_k", *_SAMPLES),
        problems=_answers,
        stages=(*RL_STAGES, *_ALONE),
    ),
    Rule(
        about="`evaluation.win_by` and `evaluation.success_by` are `reward` or the name of a part "
        "of it.",
        keys=(
            "evaluation.win_by",
            "evaluation.success_by",
            "evaluation.every",
            *_PART_KEYS,
            *_REWARDS,
        ),
        problems=_parts,
        stages=(*RL_STAGES, *_ALONE),
    ),
    Rule(
        about="`evaluation.kl` needs `evaluation.samples` and a reference: `reference.path` in "
        "`stage=evaluate`, one that runs beside the policy in `stage=rl`.",
        keys=(
            "evaluation.kl",
            "reference.path",
            "reference.source",
            "algorithm.kl_coefficient",
            "training.lora.r",
            "placement.strategy",
            *_SAMPLES,
        ),
        problems=_kl,
        stages=(*RL_STAGES, *_ALONE),
    ),
    Rule(
        about="`evaluation.best_metric` is one that every evaluation measures.",
        keys=(
            "evaluation.best_metric",
            "evaluation.keep_best",
            "evaluation.greedy",
            "evaluation.kl",
            "evaluation.pass_at_k",
            *_PART_KEYS,
            *_SAMPLES,
            *_REWARDS,
        ),
        problems=_best,
    ),
    Rule(
        about="`stage=evaluate`: `generation.max_num_batched_tokens` is above "
        "`examples.max_tokens` where demonstrations are given in `examples.eval_path`.",
        keys=("generation.max_num_batched_tokens", "examples.max_tokens", "examples.eval_path"),
        problems=_whole_demonstrations,
        stages=_ALONE,
    ),
    Rule(
        about="`stage=evaluate`: `evaluation.lm_eval_chat` needs `model.chat_template` null.",
        keys=("evaluation.lm_eval_tasks", "evaluation.lm_eval_chat", "model.chat_template"),
        problems=_harness,
        stages=_ALONE,
    ),
    Rule(
        about="`evaluation.samples` is at most `samples_per_prompt` where the algorithm samples "
        "greedy answers itself (remax).",
        keys=("algorithm.advantage", "samples_per_prompt", *_SAMPLES),
        problems=_greedy_baseline,
    ),
)
