"""Mean and standard deviation of a reward model's scores, stored next to its weights.

Training fixes only differences of scores, not their zero and scale. A run that adds the scores to
other rewards needs both.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from rlhf_ray.algorithms.equality import are_equal
from rlhf_ray.algorithms.rewards.task_rewards import RewardMoments
from rlhf_ray.config.errors import RequestError

FILE_NAME = "reward_normalization.json"
_FLOAT32_EPSILON, _FLOAT32_TINY, _FLOAT32_MAX = 2.0**-23, 2.0**-126, 3.4028234663852886e38


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardNormalization:
    """Moments of the scores of training answers.

    Attributes:
        mean, standard_deviation: of the scores; the population's deviation, at least 0.
        num_answers: number of scores.
    """

    mean: float
    standard_deviation: float
    num_answers: int

    def normalized(self, score: float) -> float:
        """Scale a score to mean 0 and deviation 1; only centre it if the deviation is 0."""
        return (score - self.mean) / (self.standard_deviation or 1.0)


def normalization_of(moments: RewardMoments | None) -> RewardNormalization:
    """Mean and population deviation; mean 0 and deviation 1 without scores.

    The deviation is 0 where the scores differ by no more than rounding.
    """
    if moments is None:
        return RewardNormalization(mean=0.0, standard_deviation=1.0, num_answers=0)
    # The model computes in float32 at most; anything closer is rounding.
    is_constant = are_equal((moments.lowest, moments.highest), _FLOAT32_EPSILON)
    return RewardNormalization(
        mean=moments.mean,
        standard_deviation=0.0 if is_constant else math.sqrt(moments.squares / moments.count),
        num_answers=moments.count,
    )


def write_normalization(folder: Path, normalization: RewardNormalization) -> None:
    """Write the file next to the model in `folder`."""
    text = json.dumps(asdict(normalization), indent=2)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def find_normalization(path: str) -> RewardNormalization | None:
    """Read the file of a model's folder or hub name; None if the model has no such file.

    Raises:
        RequestError: the file cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        try:
            folder = Path(hf_hub_download(path, FILE_NAME)).parent
        except EntryNotFoundError:
            return None
    return read_normalization(folder) if (folder / FILE_NAME).is_file() else None


def read_normalization(folder: Path) -> RewardNormalization:
    """Read the file that `write_normalization` wrote.

    Raises:
        RequestError: the file is missing or cannot be read.
    """
    file = folder / FILE_NAME
    try:
        found = RewardNormalization(**json.loads(file.read_text(encoding="utf-8")))
        _check(found)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RequestError(
            f"{file} cannot be read ({error}): stage=reward_model writes it next to the model. "
            "Write it again, or give reward.model.mean and reward.model.standard_deviation"
        ) from error
    return found


def _check(found: RewardNormalization) -> None:
    """Refuse values that would flip, spread or lose scores without a word.

    Raises:
        ValueError: names the field and its value.
    """
    for name, value in asdict(found).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}, not a number")
        if not math.isfinite(value) or abs(value) > _FLOAT32_MAX:
            raise ValueError(f"{name} is {value!r}, not a finite number of float32")
    deviation = found.standard_deviation
    if deviation < 0 or 0 < deviation < _FLOAT32_TINY:
        raise ValueError(f"standard_deviation is {deviation!r}; it must be 0 or a positive float32")
    if not isinstance(found.num_answers, int) or found.num_answers < 0:
        raise ValueError(f"num_answers is {found.num_answers!r}, not a whole number from 0")
