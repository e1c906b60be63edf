"""Raw texts: every token of an example but the first is predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.example_columns import LAYOUTS, read_columns
from rlhf_ray.data.examples.chats import filled_cell
from rlhf_ray.data.examples.lengths import LengthLimit
from rlhf_ray.data.examples.load import GatheredExamples, finished_set
from rlhf_ray.data.examples.rows import Source, identity, open_sources
from rlhf_ray.data.examples.sets import ExampleSet
from rlhf_ray.data.examples.split import content_key
from rlhf_ray.data.examples.storage.packed import PackedTexts, StoredTexts, all_but_first
from rlhf_ray.data.examples.storage.stored import StoredExamples
from rlhf_ray.data.notes import UnreadColumns
from rlhf_ray.data.rejects import INVALID
from rlhf_ray.data.rows import BadCell, DataError, Row
from rlhf_ray.data.tokens.encoding import most_characters
from rlhf_ray.data.tokens.fidelity import TokenTextCheck
from rlhf_ray.data.tokens.plain_texts import PlainEncoder
from rlhf_ray.data.tokens.special_texts import SpecialTextCheck
from rlhf_ray.data.tokens.turn_ends import TurnEnd
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
    sources = open_sources(examples, LAYOUTS["texts"])
    sides = {held_out: _side(examples) for held_out in (False, True)}
    gathered: GatheredExamples[LabelledTokens] = GatheredExamples(
        train=(), held_out=(), unread=UnreadColumns(read_columns(examples, "texts"))
    )
    num_texts = 0
    plain = PlainEncoder(tokenizer)
    fidelity = TokenTextCheck(tokenizer)
    for source in sources:
        lengths = LengthLimit(
            examples, source.rejects, most_characters(tokenizer, examples.max_tokens)
        )
        specials = SpecialTextCheck(source.config, tokenizer)
        rows = _texts(source, examples, lengths, specials, gathered.unread)
        while chunk := list(islice(rows, _TOKENISED_AT_ONCE)):
            texts = [_up_to_end(text, tokenizer) for _, _, text in chunk]
            encoded = plain.encode(texts)
            for (row, is_held_out, _), text, ids in zip(chunk, texts, encoded, strict=True):
                if isinstance(ids, BadCell):
                    source.rejects.bad_row(INVALID, row.where, str(ids))
                    continue
                fidelity.check_text(row.where, text, ids)
                gathered.overlap.add(held_out=is_held_out, question=None, whole=text)
                has_end = bool(ids) and ids[-1] == end
                gathered.num_ended += has_end
                sides[is_held_out].add(row, ids if has_end else [*ids, end], lengths)
                num_texts += not is_held_out
        gathered.num_cut += lengths.num_cut
        gathered.special_notes += specials.lines()
    gathered.special_notes += fidelity.lines()
    text_end = TurnEnd(token_id=end, text=str(tokenizer.eos_token), count=num_texts)
    gathered.turn_ends = (text_end,)
    gathered.num_begun = plain.num_begun
    order_seed = seed if examples.shuffle else None
    gathered.train, gathered.held_out = (sides[side].examples(order_seed) for side in (False, True))
    return finished_set("texts", examples, tokenizer, gathered, sources)


def _texts(
    source: Source,
    examples: ExamplesConfig,
    lengths: LengthLimit,
    specials: SpecialTextCheck,
    unread: UnreadColumns,
) -> Iterator[tuple[Row, bool, str]]:
    """Yield usable rows with their side of the split and text, cut if it is surely too long."""
    for row in source.rows():
        unread.add(row)
        try:
            own = identity(row, examples)
            text = filled_cell(row, examples.text_column)
            specials.check(row, text)
        except BadCell as error:
            source.rejects.bad_row(INVALID, row.where, str(error))
            continue
        is_held_out = source.holds_out(content_key(text) if own is None else own)
        if examples.pack_texts:
            yield row, is_held_out, text
        elif not lengths.leaves_out(row, len(text)):
            yield row, is_held_out, text[: 2 * lengths.max_characters]


def _up_to_end(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text without white space after an end of text that it has already."""
    bare = text.rstrip()
    return bare if bare.endswith(str(tokenizer.eos_token)) else text


class _Packed:
    """The texts of one side, which are put one after the other. The split needs no sources: the
    rows of a side are of one source."""

    def __init__(self, examples: ExamplesConfig) -> None:
        self._max_tokens = examples.max_tokens
        self._texts = StoredTexts(examples.scratch_folder)

    def add(self, row: Row, ids: Sequence[int], lengths: LengthLimit) -> None:
        del row, lengths
        self._texts.append(ids)

    def examples(self, seed: int | None) -> Sequence[LabelledTokens]:
        """Args: seed: of the order of the texts; None keeps that of the source."""
        return PackedTexts(self._texts, max_tokens=self._max_tokens, seed=seed)


class _Separate:
    """The texts of one side, each of them an example."""

    def __init__(self, examples: ExamplesConfig) -> None:
        self._stored: StoredExamples[LabelledTokens] = StoredExamples(examples.scratch_folder)

    def add(self, row: Row, ids: Sequence[int], lengths: LengthLimit) -> None:
        example = lengths.fit(row, [all_but_first(ids)], lambda samples: samples[0])
        if example is not None:
            self._stored.append(example)

    def examples(self, seed: int | None) -> Sequence[LabelledTokens]:
        del seed
        return self._stored


def _side(examples: ExamplesConfig) -> _Packed | _Separate:
    return _Packed(examples) if examples.pack_texts else _Separate(examples)
