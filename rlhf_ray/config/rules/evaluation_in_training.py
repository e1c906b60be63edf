"""Rules of evaluation during training."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from rlhf_ray.config.groups.reward import SCORER_NAMES
from rlhf_ray.config.rules.evaluation import REWARDS, SAMPLES, part_names
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config


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
