"""Texts of token ids, from the tokenizer file next to the model of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.report.forgiving_reads import ReadNotes

_FILE = "tokenizer.json"


def find_token_text(
    folder: Path, settings: Mapping[str, Any], notes: ReadNotes
) -> Callable[[int], str | None] | None:
    """A function from a token id to its text; None if no tokenizer file was found.

    A token that is only a part of a character has no text.
    """
    named = settings.get("model.path")
    places = [folder / "model", *([Path(named).expanduser()] if isinstance(named, str) else [])]
    file = next((place / _FILE for place in places if (place / _FILE).is_file()), None)
    if file is None:
        notes.add(f"no {_FILE} was found next to the model: tokens are shown by their numbers")
        return None
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the library raises Exception itself
        notes.add(f"{file} cannot be read ({error}): tokens are shown by their numbers")
        return None

    @functools.cache
    def text(number: int) -> str | None:
        # Decoded after another token: at the beginning of a text some decoders drop the space.
        piece = tokenizer.id_to_token(number)
        if piece is None:
            return None
        alone = tokenizer.decode([number], skip_special_tokens=False)
        twice = tokenizer.decode([number, number], skip_special_tokens=False)
        found = twice[len(alone) :] if twice.startswith(alone) else alone
        return None if "�" in found else found or piece

    return text
