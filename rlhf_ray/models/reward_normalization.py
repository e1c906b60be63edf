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

from rlhf_ray.config.errors import RequestError

FILE_NAME = "reward_normalization.json"


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


def normalization_of(count: float, total: float, squares: float) -> RewardNormalization:
    """Compute the moments from count, sum and sum of squares; mean 0 and deviation 1 if empty."""
    if not count:
        return RewardNormalization(mean=0.0, standard_deviation=1.0, num_answers=0)
    mean = total / count
    variance = max(squares / count - mean * mean, 0.0)
    return RewardNormalization(
        mean=mean, standard_deviation=math.sqrt(variance), num_answers=int(count)
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
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(
            f"{file} cannot be read ({error}): stage=reward_model writes it next to the model"
        ) from error
    return found
