"""Tokenising of many texts, where one that cannot be tokenised does not end the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf_ray.data.rows import BadCell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts below this are tokenised in a moment. Some tokenizers drop white space or join unknown
# characters, so that a token of theirs may cover more characters than its own text has.
_NEVER_TOO_LONG = 100_000


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = True
) -> list[list[int] | BadCell]:
    """Token ids of each text, or why it cannot be tokenised.

    All texts at once, which is faster; one at a time only if that fails.
    """
    if not texts:
        return []
    try:
        return list(tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"])
    # Tokenizers raise anything; a panic of the Rust library is not even an `Exception`.
    except BaseException as error:
        if not _is_fault(error):
            raise
        if len(texts) == 1:
            return [BadCell(f"the tokenizer cannot read the text: {type(error).__name__}: {error}")]
    return [encode([text], tokenizer, add_special_tokens=add_special_tokens)[0] for text in texts]


def most_characters(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> int:
    """Number of characters from which on a text surely has more than `num_tokens` tokens.

    A token covers at most as many characters as the longest token of the vocabulary has.
    """
    longest = max((len(token) for token in tokenizer.get_vocab()), default=1)
    return max(num_tokens * longest, _NEVER_TOO_LONG)


def _is_fault(error: BaseException) -> bool:
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
