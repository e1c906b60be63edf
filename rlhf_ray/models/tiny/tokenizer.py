"""A byte-level tokenizer of a few hundred tokens, trained on the text of one task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, USER, ASSISTANT = "<pad>", "<eos>", "<user>", "<assistant>"
SPECIALS = (PAD, EOS, USER, ASSISTANT)

# System text stands bare in front: a role marker of its own would be a token that such a small
# model never learned.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{% if message['role'] == 'user' %}}{USER}{{{{ message['content'] }}}}"
    f"{{% elif message['role'] == 'assistant' %}}{ASSISTANT}{{{{ message['content'] }}}}{EOS}"
    "{% else %}{{ message['content'] }}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one of the `SPECIALS`."""
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 512, lowercase: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits digits one by one; the same texts give the same tokenizer.

    Args:
        vocab_size: largest size; there are fewer tokens where the texts have no more pairs to
            merge, never fewer than the 256 bytes and the specials.
        lowercase: fold the case of whatever is encoded, so that decoded ids may encode to
            others: `decode` of a capital letter's id gives text that comes back in lower case.
    """
    # Here, so that the template and the names of the specials come without transformers.
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    # Digits first: a number of two digits must never become one token, or every sum would be a
    # word of its own and nothing could be learned about digits.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
