"""Mean and standard deviation of a reward model's scores, stored beside its weights.

A difference of scores says which answer is better; where zero is and how long a unit is, it does
not say. What follows a reward model, and compares it with other rewards, wants both settled.
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
    """What the scores of training answers look like.

    Attributes:
        mean, standard_deviation: of the scores; the latter of the population, at least 0.
        num_answers: that they were measured on.
    """

    mean: float
    standard_deviation: float
    num_answers: int

    def normalized(self, score: float) -> float:
        """The score with mean 0 and standard deviation 1; only centred where all were equal."""
        return (score - self.mean) / (self.standard_deviation or 1.0)


def normalization_of(count: float, total: float, squares: float) -> RewardNormalization:
    """From the number, the sum and the sum of squares of the scores; (0, 1) of none."""
    if not count:
        return RewardNormalization(mean=0.0, standard_deviation=1.0, num_answers=0)
    mean = total / count
    variance = max(squares / count - mean * mean, 0.0)
    return RewardNormalization(
        mean=mean, standard_deviation=math.sqrt(variance), num_answers=int(count)
    )


def write_normalization(folder: Path, normalization: RewardNormalization) -> None:
    """Write it beside the model in `folder`."""
    text = json.dumps(asdict(normalization), indent=2)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def find_normalization(path: str) -> RewardNormalization | None:
    """The file of a model's folder or hub name; None where it has none.

    Raises:
        RequestError: it is no such file.
    """
    folder = Path(path)
    if not folder.is_dir():
        try:
            folder = Path(hf_hub_download(path, FILE_NAME)).parent
        except EntryNotFoundError:
            return None
    return read_normalization(folder) if (folder / FILE_NAME).is_file() else None


def read_normalization(folder: Path) -> RewardNormalization:
    """What `write_normalization` wrote.

    Raises:
        RequestError: it is not there, or is no such file.
    """
    file = folder / FILE_NAME
    try:
        found = RewardNormalization(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(
            f"{file} cannot be read ({error}): stage=reward_model writes it beside the model"
        ) from error
    return found
