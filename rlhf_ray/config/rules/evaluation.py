"""Rules of evaluation: as a stage, and during training."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import SCORER_NAMES, SCORER_SWITCHES
from rlhf_ray.config.reward_entries import read_functions
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import EVALUATION_STAGES, SCORING_STAGES


def _runs(config: Config) -> bool:
    return config.is_evaluation or config.evaluation.every > 0


def _models(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    models = evaluation.models
    if not models:
        yield (
            "evaluation.models is empty: name the models to evaluate, as in "
            "evaluation.models.sft=outputs/sft/model evaluation.models.rl=outputs/rl/model"
        )
        return
    for name, path in models.items():
        if not path.strip():
            yield f"evaluation.models.{name} is empty: name a folder or a hub model"
    if evaluation.baseline is not None and evaluation.baseline not in models:
        yield (
            f"evaluation.baseline={evaluation.baseline}: is not in evaluation.models; choose one "
            f"of {', '.join(models)}"
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
            f"function, or set {' or '.join(SCORER_SWITCHES)}"
        )


def _answers(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    if not _runs(config):
        return
    if evaluation.answers_per_prompt == 0:
        yield (
            "evaluation.samples=0: with evaluation.greedy=false there is no answer to evaluate; "
            "set samples above 0 or greedy to true"
        )
    for k in evaluation.pass_at_k:
        if not 1 <= k <= evaluation.samples:
            yield (
                f"evaluation.pass_at_k={evaluation.pass_at_k}: k={k} needs a number of "
                f"sampled answers from 1 to evaluation.samples={evaluation.samples}; raise samples "
                f"to at least {max(k, 1)}, or remove {k}"
            )


def _parts(config: Config) -> Iterator[str]:
    if not _runs(config):
        return
    parts = part_names(config)
    if not parts:
        return
    names = ["reward", *parts]
    for key in ("win_by", "success_by"):
        value = vars(config.evaluation)[key]
        if value not in names:
            yield (
                f"evaluation.{key}={value}: is not a part of the reward; choose one of "
                f"{', '.join(names)}"
            )


def _kl(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    if evaluation.kl == "none" or not _runs(config):
        return
    if evaluation.samples == 0:
        yield (
            f"evaluation.kl={evaluation.kl}: is measured on sampled answers, but "
            f"evaluation.samples=0; raise samples, or set kl to none"
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
            f"which has no device while the engines answer (placement=colocated); set "
            f"reference.source=own, or set evaluation.kl to none"
        )
    if config.is_evaluation and config.reference.path is None:
        yield (
            f"evaluation.kl={evaluation.kl}: reference.path is null; name the model that the "
            f"divergence refers to, or set evaluation.kl to none"
        )


def part_names(config: Config) -> list[str]:
    """Names of the reward's parts; empty if the reward is invalid (another rule reports it)."""
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
            f"model.chat_template={template}: lm-evaluation-harness only supports the template of "
            f"a model's tokenizer; set it to null, or evaluation.lm_eval_chat to false"
        )


SAMPLES = ("evaluation.samples", "evaluation.every")
REWARDS = ("reward.functions", *SCORER_SWITCHES)

EVALUATION_RULES: tuple[Rule, ...] = (
    Rule(
        about="`stage=evaluate`: `evaluation.models` has at least one model, and "
        "`evaluation.baseline` is one of them.",
        keys=("evaluation.models", "evaluation.baseline"),
        problems=_models,
        stages=EVALUATION_STAGES,
    ),
    Rule(
        about="`stage=evaluate`: `data.path` or `evaluation.path` is set, and there is a reward.",
        keys=("data.path", "evaluation.path", *REWARDS),
        problems=_inputs,
        stages=EVALUATION_STAGES,
    ),
    Rule(
        about="An evaluation needs `evaluation.greedy` or `evaluation.samples`; every k in "
        "`evaluation.pass_at_k` is from 1 to `evaluation.samples`.",
        keys=("evaluation.greedy", "evaluation.pass_at_k", *SAMPLES),
        problems=_answers,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`evaluation.win_by` and `evaluation.success_by` are `reward` or the name of a part "
        "of it.",
        keys=(
            "evaluation.win_by",
            "evaluation.success_by",
            "evaluation.every",
            *SCORER_NAMES,
            *REWARDS,
        ),
        problems=_parts,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`evaluation.kl` needs `evaluation.samples` and a reference: `reference.path` in "
        "`stage=evaluate`, the run's reference in `stage=rl`.",
        keys=(
            "evaluation.kl",
            "reference.path",
            "reference.source",
            "algorithm.kl_coefficient",
            "training.lora.r",
            "placement.strategy",
            *SAMPLES,
        ),
        problems=_kl,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`stage=evaluate`: `evaluation.lm_eval_chat` needs `model.chat_template` null.",
        keys=("evaluation.lm_eval_tasks", "evaluation.lm_eval_chat", "model.chat_template"),
        problems=_harness,
        stages=EVALUATION_STAGES,
    ),
)


def _held_out(config: Config) -> Iterator[str]:
    evaluation, data = config.evaluation, config.data
    if evaluation.every == 0:
        return
    same_path = evaluation.path in (None, data.path)
    same_split = evaluation.split in (None, data.split)
    if same_path and same_split:
        yield (
            f"evaluation.every={evaluation.every}: the held-out prompts are those that are trained "
            f"on (data.path={data.path}); set evaluation.path or evaluation.split to others"
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
            f"evaluation.best_metric={evaluation.best_metric}: is not measured; {hint}Choose "
            f"one of {', '.join(names)}"
        )


def _metric_names(config: Config) -> list[str]:
    """Metrics of every evaluation of a policy in training."""
    evaluation = config.evaluation
    names = []
    for mode, is_on in (("greedy", evaluation.greedy), ("sampled", evaluation.samples > 0)):
        own = ["reward/mean", "success_share", "response/length_mean"]
        own += ["response/truncated_fraction", "repeated_share", "distinct_1", "distinct_2"]
        own += [f"reward/{name}" for name in part_names(config)]
        if mode == "sampled":
            own += [f"pass_at_{k}" for k in evaluation.pass_at_k]
        names += [f"evaluation/{mode}/{name}" for name in own] if is_on else []
    return [*names, *(["evaluation/kl/reference"] if evaluation.kl != "none" else [])]


def _greedy_baseline(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    has_greedy = evaluation.every > 0 and config.algorithm.num_greedy > 0
    if has_greedy and evaluation.samples > config.samples_per_prompt:
        yield (
            f"evaluation.samples={evaluation.samples}: with algorithm.advantage="
            f"{config.algorithm.advantage} an engine's answers from samples_per_prompt="
            f"{config.samples_per_prompt} on are greedy; lower it to at most "
            f"{config.samples_per_prompt}"
        )


EVALUATION_IN_TRAINING_RULES: tuple[Rule, ...] = (
    Rule(
        about="`evaluation.every` needs held-out prompts: `evaluation.path` or "
        "`evaluation.split` other than those of `data`.",
        keys=("evaluation.every", "evaluation.path", "evaluation.split", "data.path", "data.split"),
        problems=_held_out,
    ),
    Rule(
        about="`evaluation.best_metric` is a metric that every evaluation measures.",
        keys=(
            "evaluation.best_metric",
            "evaluation.keep_best",
            "evaluation.greedy",
            "evaluation.kl",
            "evaluation.pass_at_k",
            *SCORER_NAMES,
            *SAMPLES,
            *REWARDS,
        ),
        problems=_best,
    ),
    Rule(
        about="`evaluation.samples` is at most `samples_per_prompt` if the algorithm itself takes "
        "greedy answers (remax).",
        keys=("algorithm.advantage", "samples_per_prompt", *SAMPLES),
        problems=_greedy_baseline,
    ),
)
