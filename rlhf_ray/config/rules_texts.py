"""Rules of the texts that are learnt beside the rewards."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config


def _source_and_weight(config: Config) -> Iterator[str]:
    coefficient, path = config.algorithm.ptx_coefficient, config.texts.path
    if coefficient > 0 and not path:
        yield (
            f"texts.path is empty: algorithm.ptx_coefficient={coefficient:g} adds the loss of "
            f"texts to the policy's; name a file, a folder, a hub data set or "
            f"package.module:iterable, as in texts.path=texts.jsonl, or set the coefficient to 0"
        )
    if path and coefficient == 0:
        yield (
            f"texts.path={path}: with algorithm.ptx_coefficient=0 nothing would be learnt from "
            f"these texts; set a coefficient, as in algorithm.ptx_coefficient=0.1, or leave "
            f"texts.path empty"
        )


def _text_fits_micro_batch(config: Config) -> Iterator[str]:
    longest, budget = config.texts.max_tokens, config.training.max_tokens_per_micro_batch
    if config.mixes_texts and longest > budget:
        yield (
            f"texts.max_tokens={longest}: a forward pass holds "
            f"training.max_tokens_per_micro_batch={budget} tokens; lower the one to at most "
            f"{budget}, or raise the other"
        )


def _ranks_have_texts(config: Config) -> Iterator[str]:
    texts, ranks = config.texts.texts_per_step, config.training.num_ranks
    if config.mixes_texts and texts < ranks:
        yield (
            f"texts.texts_per_step={texts}: some of training.num_ranks={ranks} ranks would never "
            f"have a text; raise it to at least {ranks}"
        )


_WEIGHT = "algorithm.ptx_coefficient"

TEXT_RULES: tuple[Rule, ...] = (
    Rule(
        about="`algorithm.ptx_coefficient` above 0 needs `texts.path`, and `texts.path` needs it.",
        keys=(_WEIGHT, "texts.path"),
        problems=_source_and_weight,
    ),
    Rule(
        about="`texts.max_tokens` is at most `training.max_tokens_per_micro_batch`.",
        keys=(_WEIGHT, "texts.max_tokens", "training.max_tokens_per_micro_batch"),
        problems=_text_fits_micro_batch,
    ),
    Rule(
        about="`texts.texts_per_step` is at least `training.num_ranks`.",
        keys=(_WEIGHT, "texts.texts_per_step", "training.num_ranks"),
        problems=_ranks_have_texts,
    ),
)
