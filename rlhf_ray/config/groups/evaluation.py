"""Evaluation of models: in `stage=evaluate`, and of the policy during training."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class EvaluationConfig:
    """Models, held-out prompts, and the metrics of the answers."""

    models: dict[str, str] = setting(
        {},
        "stage=evaluate: models by their name in the report; each a folder, a hub name or "
        "builtin:NAME.",
        is_path=True,
    )
    baseline: str | None = setting(
        None, "Name of the model to compare the others with; null takes the first."
    )
    path: str | None = setting(
        None,
        "Source of the held-out prompts, read with the columns of `data`; null takes data.path, "
        "in stage=evaluate only.",
        is_path=True,
    )
    split: str | None = setting(
        None,
        "Split of a hub or saved data set with the held-out prompts; null takes data.split.",
    )
    limit: int | None = setting(
        None, "Largest number of held-out rows; null for all.", unit="rows", minimum=1
    )
    greedy: bool = setting(True, "Generate one greedy answer to each prompt.")
    samples: int = setting(
        0,
        "Sampled answers to each prompt, with the sampling of `generation`; 0 for none.",
        minimum=0,
    )
    pass_at_k: list[int] = setting(
        [], "Values of k for pass@k: the probability that one of k sampled answers succeeds."
    )
    success_by: str = setting(
        "reward", "Score that decides success of an answer: reward, or the name of a part of it."
    )
    success_reward: float = setting(1.0, "Least score of a successful answer.")
    win_by: str = setting(
        "reward", "Score that decides between two answers: reward, or the name of a part of it."
    )
    confidence: float = setting(
        0.95, "Confidence level of the interval of a win rate.", above=0, below=1
    )
    num_resamples: int = setting(
        1000,
        "Bootstrap resamples for the interval; 0 takes a normal approximation.",
        minimum=0,
    )
    kl: str = setting(
        "none",
        "Estimator of the KL divergence from the reference (reference.path in stage=evaluate) on "
        "sampled answers; none switches it off.",
        choices=("none", "k1", "k3"),
    )
    ngram: int = setting(4, "Length of n-grams in the repetition metric.", unit="tokens", minimum=1)
    lm_eval_tasks: list[str] = setting(
        [],
        "stage=evaluate: tasks or task groups of lm-evaluation-harness, run on every model by the "
        "harness's vLLM backend. Needs the extra lm-eval.",
    )
    lm_eval_path: str | None = setting(
        None, "Folder with YAML files of further tasks, in the harness's format.", is_path=True
    )
    lm_eval_limit: int | None = setting(
        None, "Largest number of questions per task; null for all.", minimum=1
    )
    lm_eval_shots: int | None = setting(
        None, "Few-shot examples before each question; null takes the task's number.", minimum=0
    )
    lm_eval_chat: bool = setting(
        False, "Ask questions as user messages, in the model's chat template."
    )
    lm_eval_max_tokens: int | None = setting(
        None,
        "Longest question plus answer; null takes the model's limit.",
        unit="tokens",
        minimum=2,
    )
    every: int = setting(
        0,
        "stage=rl: steps between two evaluations; the last step is always evaluated; 0 for none.",
        unit="steps",
        minimum=0,
    )
    keep_best: bool = setting(
        True, "stage=rl: keep the model of the best evaluation in output_dir/best."
    )
    best_metric: str | None = setting(
        None,
        "stage=rl: metric of the best evaluation; null takes the mean reward of the greedy "
        "answers, or of the sampled answers without greedy ones.",
    )
    best_is_lowest: bool = setting(False, "stage=rl: the lowest value is the best.")

    @property
    def compared_by(self) -> str:
        """The metric that decides which evaluation is best."""
        mode = "greedy" if self.greedy else "sampled"
        return self.best_metric or f"evaluation/{mode}/reward/mean"

    @property
    def baseline_name(self) -> str:
        """Name of the model to compare the others with."""
        return self.baseline or next(iter(self.models))

    @property
    def answers_per_prompt(self) -> int:
        return self.samples + self.greedy
