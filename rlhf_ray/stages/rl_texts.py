"""The texts of a run: read, checked and put in their order, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rlhf_ray.batching.rank_plan import rank_plan
from rlhf_ray.config.run import Config
from rlhf_ray.data.ptx_texts import load_texts
from rlhf_ray.driver.updates.texts import NoTexts, TextMixture, TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_texts(
    config: Config, tokenizer: PreTrainedTokenizerBase, *, report: Callable[[str], None]
) -> TextSource:
    """What every optimiser step of the policy learns beside its samples.

    Args:
        report: takes lines for people.

    Raises:
        DataError: the texts cannot be read as configured.
    """
    if not config.mixes_texts:
        return NoTexts(num_ranks=config.training.num_ranks)
    texts = load_texts(config.texts, tokenizer)
    report(texts.describe())
    return TextMixture(
        texts,
        seed=config.seed,
        shuffle=config.texts.shuffle,
        plan=rank_plan(config.training),
        texts_per_step=config.texts.texts_per_step,
        steps_per_update=config.optimizer_steps_per_batch,
    )
