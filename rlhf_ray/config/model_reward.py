"""A trained model whose score is a part of the reward."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.config.setting import setting


@dataclass
class ModelRewardConfig(RoleConfig):
    """A reward model that scores every response. Started only where `path` is set."""

    path: str | None = setting(
        None,
        "Folder or hub name of a sequence classifier with one label, such as stage=reward_model "
        "writes; null for none.",
    )
    tokenizer_path: str | None = setting(
        None, "Folder or hub name of its tokenizer; the reward model's own otherwise."
    )
    name: str = setting("model", "Name of the part: the metric is reward/<name>.")
    weight: float = setting(1.0, "Factor of the part in the reward.")
    foreign_tokens: str = setting(
        "refuse",
        "What happens where tokenizer or chat template are not the policy's: refuse the run, or "
        "text: prompt and decoded response are rendered and tokenised anew, as the reward model "
        "knows them.",
        choices=("refuse", "text"),
    )
    normalize: bool = setting(
        True,
        "Take the mean from the score and divide by the standard deviation, those of "
        "reward_normalization.json beside the model or those below.",
    )
    mean: float | None = setting(
        None, "Mean of the scores, for a model without that file; with `standard_deviation`."
    )
    standard_deviation: float | None = setting(
        None, "Standard deviation of the scores; with `mean`.", above=0
    )
    clip: float | None = setting(
        None, "Largest absolute value of the normalised score; null for none.", above=0
    )
    unfinished_score: float | None = setting(
        None,
        "Normalised score of a response that was cut off at generation.max_response_tokens, "
        "instead of the model's; null asks the model.",
    )
