"""Texts of token ids from the tokenizer file of a run."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from rlhf_ray.report.forgiving_reads import ReadNotes
from rlhf_ray.report.rollouts.token_texts import find_token_text


@pytest.fixture
def model(tmp_path):
    """A tokenizer of bytes, in which "é" is two tokens."""
    names = [*sorted(ByteLevel.alphabet()), "Ġthe"]
    tokenizer = Tokenizer(BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.decoder = ByteLevelDecoder()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path, {name: i for i, name in enumerate(names)}


def test_texts_keep_their_spaces_and_parts_of_characters_have_none(model):
    folder, ids = model
    text = find_token_text(folder, {}, ReadNotes())
    assert text is not None
    assert text(ids["Ġthe"]) == " the"
    assert text(ids["a"]) == "a"
    assert text(ids["Ã"]) is None
    assert text(10**6) is None


def test_the_tokenizer_of_the_model_that_a_failed_run_started_from(model, tmp_path):
    folder, ids = model
    text = find_token_text(tmp_path / "other", {"model.path": str(folder / "model")}, ReadNotes())
    assert text is not None
    assert text(ids["a"]) == "a"


@pytest.mark.parametrize("content", [None, "{"])
def test_without_a_tokenizer_a_note_says_so(content, tmp_path):
    if content:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "tokenizer.json").write_text(content)
    notes = ReadNotes()
    assert find_token_text(tmp_path, {"model.path": None}, notes) is None
    assert "tokens are shown by their numbers" in notes.texts()[0]
