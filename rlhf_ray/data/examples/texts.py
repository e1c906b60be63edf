"""Raw texts: every token of an example but the first is predicted."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.example_columns import LAYOUTS
from rlhf_ray.data.examples.chats import answer_cell
from rlhf_ray.data.examples.lengths import LengthLimit
from rlhf_ray.data.examples.load import GatheredExamples, finished_set
from rlhf_ray.data.examples.rows import Source, identity, read_sources
from rlhf_ray.data.examples.sets import ExampleSet
from rlhf_ray.data.examples.split import content_key
from rlhf_ray.data.prompts.order import stable_seed
from rlhf_ray.data.rejects import INVALID
from rlhf_ray.data.rows import BadCell, DataError, Row
from rlhf_ray.records.supervised import LabelledTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENISED_AT_ONCE = 512


def load_texts(
    examples: ExamplesConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> ExampleSet[LabelledTokens]:
    """Texts, each ended by the end-of-text token.

    With `examples.pack_texts` the texts of each side of the split are put one after the other
    (in an order of the seed, with `examples.shuffle`) and cut into pieces of
    `examples.max_tokens`; the last one is shorter, and is left out if it has a single token.

    Raises:
        DataError: see `load_examples`; or the tokenizer has no end-of-text token.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise DataError(
            "the model's tokenizer has no end-of-text token, which must end every text; name "
            "another tokenizer with model.tokenizer_path"
        )
    sources = read_sources(examples, LAYOUTS["texts"])
    gathered: GatheredExamples[LabelledTokens] = GatheredExamples()
    for source in sources:
        documents: dict[bool, list[tuple[Row, list[int]]]] = {False: [], True: []}
        rows = _texts(source, examples)
        while chunk := list(islice(rows, _TOKENISED_AT_ONCE)):
            encoded = tokenizer([text for _, _, text in chunk])["input_ids"]
            for (row, is_held_out, _), ids in zip(chunk, encoded, strict=True):
                # Some tokenizers end every text themselves.
                ended = ids if ids and ids[-1] == end else [*ids, end]
                documents[is_held_out].append((row, ended))
        lengths = LengthLimit(examples, source.rejects)
        for is_held_out in (False, True):
            rows_of_side = documents[is_held_out]
            gathered.of(held_out=is_held_out).extend(
                _packed(rows_of_side, examples, seed)
                if examples.pack_texts
                else _separate(rows_of_side, lengths)
            )
        gathered.num_cut += lengths.num_cut
    return finished_set("texts", examples, tokenizer, gathered, sources)


def _texts(source: Source, examples: ExamplesConfig) -> Iterator[tuple[Row, bool, str]]:
    """Yield usable rows with their side of the split and text."""
    for row in source.rows:
        try:
            own = identity(row, examples)
            text = answer_cell(row, examples.text_column)
        except BadCell as error:
            source.rejects.bad_row(INVALID, row.where, str(error))
            continue
        yield row, source.holds_out(content_key(text) if own is None else own), text


def _packed(
    documents: Sequence[tuple[Row, list[int]]], examples: ExamplesConfig, seed: int
) -> Iterator[LabelledTokens]:
    order = list(documents)
    if examples.shuffle:
        random.Random(stable_seed(seed, "pack")).shuffle(order)
    stream = torch.tensor([token for _, ids in order for token in ids], dtype=torch.int64)
    for piece in stream.split(examples.max_tokens):
        if len(piece) > 1:
            yield _all_but_first(piece.clone())


def _separate(
    documents: Sequence[tuple[Row, list[int]]], lengths: LengthLimit
) -> Iterator[LabelledTokens]:
    for row, ids in documents:
        sample = _all_but_first(torch.tensor(ids, dtype=torch.int64))
        example = lengths.fit(row, [sample], lambda samples: samples[0])
        if example is not None:
            yield example


def _all_but_first(token_ids: torch.Tensor) -> LabelledTokens:
    loss_mask = torch.ones(len(token_ids), dtype=torch.bool)
    loss_mask[0] = False
    return LabelledTokens(token_ids=token_ids, loss_mask=loss_mask)
