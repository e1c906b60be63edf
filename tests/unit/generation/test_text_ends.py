"""Ends of the tokens' texts, with real tokenizers and awkward decoders."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rlhf_ray.generation.results import response_text
from rlhf_ray.generation.text_ends import text_ends
from rlhf_ray.models.tiny.tokenizer import EOS, USER, token_id, train_tokenizer

TOKENIZER = train_tokenizer(["the answer is here", "€ 5 the € 7"], vocab_size=300)
LENGTH = len(TOKENIZER)


def decode(token_ids) -> str:
    return str(TOKENIZER.decode(list(token_ids), skip_special_tokens=True))


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def bytes_of(text: str) -> list[int]:
    """A token for every byte, as a model may sample them."""
    symbols = [bytes_to_unicode()[byte] for byte in text.encode()]
    return [token_id(TOKENIZER, symbol) for symbol in symbols]


def ends_of(token_ids: list[int]) -> tuple[str, list[int]]:
    text = decode(token_ids)
    return text, list(text_ends(decode, token_ids, text))


def by_definition(token_ids: list[int], text: str) -> list[int]:
    """Decodes every prefix: the characters that it shares with the whole text, at most ever."""
    ends = [0]
    for now in range(1, len(token_ids) + 1):
        prefix = decode(token_ids[:now])
        shared = 0
        while shared < min(len(prefix), len(text)) and prefix[shared] == text[shared]:
            shared += 1
        ends.append(max(ends[-1], shared))
    return ends[1:]


def test_a_character_is_there_with_its_last_token():
    tokens = [*encode("a"), *bytes_of("€"), *encode("b"), *bytes_of("😀"), token_id(TOKENIZER, EOS)]
    assert ends_of(tokens) == ("a€b😀", [1, 1, 1, 2, 3, 3, 3, 3, 4, 4])


def test_special_tokens_and_no_tokens_add_nothing():
    user = token_id(TOKENIZER, USER)
    assert ends_of([user, *encode("a"), user, user, *encode("b")]) == ("ab", [0, 1, 1, 1, 2])
    assert ends_of([]) == ("", [])


def test_bytes_that_are_no_character():
    # Half of a character, then text, then half of another at the end.
    half = bytes_of("€")[:2]
    text, ends = ends_of([*half, *encode("ab"), *half])
    assert text == "\ufffdab\ufffd"
    assert ends[-1] == len(text)
    assert ends == sorted(ends)
    # The sign for such bytes, itself made of three tokens.
    assert ends_of([*bytes_of("\ufffd"), *encode("a")])[1][-1] == 2


def test_a_stop_string_is_no_text():
    tokens = [*encode("the"), *encode(" answer")]
    text = response_text(decode, tokens, "swer")
    assert text == "the an"
    ends = text_ends(decode, tokens, text)
    assert ends[-1] == 6
    assert max(ends[: len(encode("the"))]) == 3


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, LENGTH - 1), max_size=24))
def test_equals_the_definition_for_any_tokens(token_ids):
    text, ends = ends_of(token_ids)
    assert len(ends) == len(token_ids)
    assert ends == sorted(ends)
    assert not ends or ends[-1] == len(text)
    # What no text could be made of may count a token later or sooner.
    if "\ufffd" not in text:
        assert ends == by_definition(token_ids, text)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab 1€é😀中\n", max_size=12), st.booleans())
def test_equals_the_definition_for_text_in_any_bytes(text, in_bytes):
    tokens = bytes_of(text) if in_bytes else encode(text)
    assert ends_of(tokens) == (text, by_definition(tokens, text))


WORDS = {1: "▁the", 2: "▁answer", 3: "s", 4: "▁."}


def spaces_dropped(token_ids) -> str:
    """Decode like SentencePiece: the first token of a text loses its space."""
    return "".join(WORDS[token] for token in token_ids).replace("▁", " ").removeprefix(" ")


def spaces_cleaned(token_ids) -> str:
    """A decoder that goes over the whole text at the end."""
    return spaces_dropped(token_ids).replace(" .", ".")


@pytest.mark.parametrize("decoder", [spaces_dropped, spaces_cleaned])
def test_decoders_that_look_at_their_neighbours(decoder):
    tokens = [1, 2, 3, 4, 1, 3, 4] * 3
    text = decoder(tokens)
    expected = [len(decoder(tokens[:now])) for now in range(1, len(tokens) + 1)]
    assert list(text_ends(decoder, tokens, text)) == expected


def test_a_decoder_that_changes_what_it_said():
    """It turns every text round: nothing is known of a token before the last one."""
    tokens = [1, 2, 3, 3, 2, 1, 2, 3]

    def decoder(token_ids):
        return spaces_dropped(token_ids)[::-1]

    ends = text_ends(decoder, tokens, decoder(tokens))
    assert ends[-1] == len(decoder(tokens))
    assert list(ends) == sorted(ends)


def test_it_decodes_a_few_tokens_at_a_time():
    """Work that grows with the square of the length would hold the engine up."""
    sizes: list[int] = []

    def counting(token_ids):
        sizes.append(len(token_ids))
        return decode(token_ids)

    tokens = bytes_of("the answer is € 5, 😀 " * 20)
    text_ends(counting, tokens, decode(tokens))
    assert max(sizes) <= 10
    assert len(sizes) <= 2 * len(tokens)
