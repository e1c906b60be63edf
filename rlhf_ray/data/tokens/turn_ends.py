"""Tokens that end a turn: the one that a chat template writes, and those that examples teach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from rlhf_ray.data.chat_fields import THOUGHT_BEGINS, THOUGHT_ENDS
from rlhf_ray.data.messages import apply_template
from rlhf_ray.data.rows import BadCell, DataError
from rlhf_ray.data.tokens.special_texts import broken_up, special_texts
from rlhf_ray.records.supervised import LabelledTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# An answer that no template shortens, and that no template writes itself.
_ANSWER = "Quite-so"
# A token that ends turns must hardly ever be followed by more of the same answer: an engine that
# stops there would cut the answer off. Not "never": a row may quote the token.
_MOST_INSIDE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnEnd:
    """A token that ends answers.

    Attributes:
        count: number of answers that it ends.
    """

    token_id: int
    text: str
    count: int


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Tokens that stand for themselves, special or not, by their text; the longest first.

    Not all tokens that end turns are marked as special in their tokenizer.
    """
    texts = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    specials = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    texts |= {text: number for text, number in specials if isinstance(text, str)}
    return {text: texts[text] for text in sorted(texts, key=len, reverse=True)}


def template_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Token with which the chat template ends an answer; None without one.

    A conversation of a question and an answer is rendered. Of several tokens after the answer, such
    as the end of the turn and the end of the text, the last one counts, as in training.
    """
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = apply_template(messages, tokenizer, add_generation_prompt=False)
    except (BadCell, DataError):
        # It asks for another kind of conversation, or is broken; whoever renders rows says so.
        return None
    _, found, rest = text.rpartition(_ANSWER)
    tokens = added_tokens(tokenizer)
    ends: list[str] = []
    while found and (token := _leading(rest, tokens)):
        ends.append(token)
        rest = rest.lstrip()[len(token) :]
    if not ends:
        return None
    # Text behind them: the template goes on with the next turn, and only the first one is an end.
    return tokens[ends[0] if rest.strip() else ends[-1]]


def turn_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens, and the other added tokens with which the chat template writes turns.

    A text of a model must not hold them where it is judged: it could end its turn and go on as
    another speaker.
    """
    return tuple(dict.fromkeys((*special_texts(tokenizer), *_written_in_turns(tokenizer))))


def inner_turn_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, tuple[int, ...]]:
    """For each token that begins or ends turns: the tokens of its text, broken up.

    Special tokens with which a model calls tools are not among them.
    """
    ends = (tokenizer.eos_token, tokenizer.bos_token)
    texts = {text for text in (*ends, *_written_in_turns(tokenizer)) if isinstance(text, str)}
    vocabulary = tokenizer.get_vocab()
    return {
        vocabulary[text]: tuple(
            tokenizer(broken_up(text, [text]), add_special_tokens=False)["input_ids"]
        )
        for text in sorted(texts & vocabulary.keys())
    }


def without_inner_turns(
    row: LabelledTokens, turn_tokens: Mapping[int, tuple[int, ...]]
) -> LabelledTokens:
    """Replace tokens of turns inside of the answer; the last token may end the answer's turn."""
    known = torch.tensor(list(turn_tokens), dtype=row.token_ids.dtype)
    found = torch.isin(row.token_ids, known) & row.loss_mask
    found[-1] = False
    if not bool(found.any()):
        return row
    ids: list[int] = []
    mask: list[bool] = []
    for token, is_answer, is_turn in zip(
        row.token_ids.tolist(), row.loss_mask.tolist(), found.tolist(), strict=True
    ):
        new = turn_tokens[token] if is_turn else (token,)
        ids += new
        mask += [is_answer] * len(new)
    return LabelledTokens(token_ids=torch.tensor(ids), loss_mask=torch.tensor(mask))


def _written_in_turns(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The added tokens with which the chat template writes turns."""
    if tokenizer.chat_template is None:
        return []
    chat = [{"role": role, "content": _ANSWER} for role in ("user", "assistant", "user")]
    try:
        text = apply_template(chat, tokenizer, add_generation_prompt=True)
    except (BadCell, DataError):
        return []
    thoughts = {*THOUGHT_BEGINS, *THOUGHT_ENDS}
    return [t for t in added_tokens(tokenizer) if t and t in text and t not in thoughts]


def engine_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens at which engines stop, whatever the model's generation settings name.

    These are the end of text and the end of a turn in the chat template.
    """
    found = (tokenizer.eos_token_id, template_end(tokenizer))
    return tuple(dict.fromkeys(token for token in found if isinstance(token, int)))


class LearntEnds:
    """Counts the tokens with which the learnt parts of examples end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = np.array(sorted(added_tokens(tokenizer).values()), dtype=np.int64)
        self._closes = dict.fromkeys(self._added.tolist(), True)
        self._ending: Counter[int] = Counter()
        self._inside: Counter[int] = Counter()

    def add(self, samples: Iterable[LabelledTokens]) -> None:
        """Count the learnt parts of these sequences."""
        for sample in samples:
            self._add(sample.token_ids.numpy(), sample.loss_mask.numpy())

    def found(self) -> tuple[TurnEnd, ...]:
        """Tokens that end learnt parts, the most frequent first.

        A token after which answers go on, such as the end of a thought that is written like a
        turn, is none.
        """
        return tuple(
            TurnEnd(token_id=token, text=str(self._tokenizer.decode([token])), count=count)
            for token, count in self._ending.most_common()
            if self._inside[token] <= _MOST_INSIDE * count
        )

    def _add(self, ids: np.ndarray, mask: np.ndarray) -> None:
        lasts = np.flatnonzero(mask & ~np.append(mask[1:], False))
        for place in np.flatnonzero(mask & np.isin(ids, self._added)).tolist():
            last = int(lasts[np.searchsorted(lasts, place)])
            token = int(ids[place])
            if place == last:
                self._ending[token] += 1
            elif not all(map(self._closes_turn, ids[place + 1 : last + 1].tolist())):
                self._inside[token] += 1

    def _closes_turn(self, token: int) -> bool:
        """Whether a token may stand between the end of an answer and the end of its turn."""
        if token not in self._closes:
            self._closes[token] = str(self._tokenizer.decode([token])).isspace()
        return self._closes[token]


def _leading(text: str, tokens: Iterable[str]) -> str:
    """The token with which the text begins after white space; empty without one."""
    bare = text.lstrip()
    return next((token for token in tokens if token and bare.startswith(token)), "")
