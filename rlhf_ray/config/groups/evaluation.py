"""What models are measured by, in `stage=evaluate` and while a policy is trained."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class EvaluationConfig:
    """Which models answer which held-out prompts, and what is reported of the answers."""

    models: dict[str, str] = setting(
        {},
        "stage=evaluate: the models, by the names that they have in the report; each a folder, a "
        "hub name or builtin:NAME.",
        is_path=True,
    )
    baseline: str | None = setting(
        None, "Name of the model that the others are compared with; null takes the first."
    )
    path: str | None = setting(
        None,
        "Source of the held-out prompts, read with the columns of `data`; null: those of "
        "data.path, in stage=evaluate alone.",
        is_path=True,
    )
    split: str | None = setting(
        None,
        "Split of the held-out prompts of a hub or saved data set, of data.path where `path` is "
        "null; null: data.split.",
    )
    limit: int | None = setting(None, "Use at most so many held-out rows.", unit="rows", minimum=1)
    greedy: bool = setting(True, "One greedy answer to each prompt.")
    samples: int = setting(
        0, "Sampled answers to each prompt, drawn as `generation` says; 0 for none.", minimum=0
    )
    pass_at_k: list[int] = setting(
        [], "For these k, the chance that one of k sampled answers succeeds."
    )
    success_by: str = setting(
        "reward", "What tells whether an answer succeeds: reward, or the name of a part of it."
    )
    success_reward: float = setting(1.0, "An answer with at least so much of it succeeds.")
    win_by: str = setting(
        "reward", "What decides between two answers: reward, or the name of a part of it."
    )
    confidence: float = setting(0.95, "Of the interval of a win rate.", above=0, below=1)
    num_resamples: int = setting(
        1000,
        "Bootstrap resamples behind that interval; 0 takes a normal distribution.",
        minimum=0,
    )
    kl: str = setting(
        "none",
        "Estimator of the KL divergence from the reference (reference.path in stage=evaluate) on "
        "sampled answers; none measures none.",
        choices=("none", "k1", "k3"),
    )
    ngram: int = setting(
        4, "Length of the n-grams whose repetition counts.", unit="tokens", minimum=1
    )
    lm_eval_tasks: list[str] = setting(
        [],
        "stage=evaluate: tasks of lm-evaluation-harness, or groups of them, which its own vLLM "
        "backend runs on every model. Needs the extra lm-eval.",
    )
    lm_eval_path: str | None = setting(
        None, "Folder with YAML files of further tasks, as the harness reads them.", is_path=True
    )
    lm_eval_limit: int | None = setting(
        None, "Questions of each of these tasks; null for all.", minimum=1
    )
    lm_eval_shots: int | None = setting(
        None, "Examples before each question; null as the task says.", minimum=0
    )
    lm_eval_chat: bool = setting(
        False, "Put a question as a message of the user, in the model's chat template."
    )
    lm_eval_max_tokens: int | None = setting(
        None,
        "Longest question and answer together; null for what the model reads.",
        unit="tokens",
        minimum=2,
    )
    every: int = setting(
        0,
        "stage=rl: steps between two evaluations, the last step always being one; 0 for none.",
        unit="steps",
        minimum=0,
    )
    keep_best: bool = setting(
        True, "stage=rl: keep the model of the best evaluation in output_dir/best."
    )
    best_metric: str | None = setting(
        None,
        "stage=rl: the metric that tells which is best; null takes the mean reward of the greedy "
        "answers, of the sampled ones where there are no others.",
    )
    best_is_lowest: bool = setting(False, "stage=rl: the lowest value is the best.")

    @property
    def compared_by(self) -> str:
        """The metric that tells which evaluation is best."""
        mode = "greedy" if self.greedy else "sampled"
        return self.best_metric or f"evaluation/{mode}/reward/mean"

    @property
    def baseline_name(self) -> str:
        """Of the model that the others are compared with."""
        return self.baseline or next(iter(self.models))

    @property
    def answers_per_prompt(self) -> int:
        return self.samples + self.greedy
