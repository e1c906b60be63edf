"""The answers that a report shows: one prompt across steps, and of every step a few."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rlhf_ray.prompt_choice import prompt_rank
from rlhf_ray.report.curves import short
from rlhf_ray.report.forgiving_reads import ReadNotes
from rlhf_ray.report.rollouts.rollout_reader import TOKEN_NUMBERS, KeptGroup

# Text of a token id; None for one that is unknown.
TokenText = Callable[[int], str | None]


def make_browser(
    groups: Sequence[KeptGroup],
    notes: ReadNotes,
    *,
    name: str,
    characters: int,
    token_text: TokenText | None = None,
) -> dict[str, Any]:
    """The groups that fit into a number of characters of JSON.

    Half of the room goes to the prompts that occur in most columns, the rest to all columns in
    turn.

    Args:
        name: what the answers are, for people.
        token_text: None where no tokenizer was found.

    Returns:
        `prompts`, `columns`, and `groups` with their places in these lists.
    """
    columns = list(dict.fromkeys(group.column for group in groups))
    of_prompt: dict[str, list[KeptGroup]] = {}
    for group in groups:
        of_prompt.setdefault(group.prompt, []).append(group)
    shelf = _Shelf(token_text)
    repeated = [found for found in of_prompt.values() if len({g.column for g in found}) > 1]
    repeated.sort(key=lambda found: (-len(found), prompt_rank(found[0].prompt)))
    for found in repeated:
        shelf.put(found, room=characters // 2)
    for group in _in_turn(groups, columns):
        shelf.put([group], room=characters)
    if len(shelf.taken) < len(groups):
        notes.add(
            f"{name}: the answers to {len(shelf.taken)} of {len(groups)} prompts read with their "
            f"texts are shown, to keep the file small"
        )
    prompts = list(dict.fromkeys(group.prompt for group in shelf.taken.values()))
    places = {prompt: number for number, prompt in enumerate(prompts)}
    in_order = sorted(shelf.taken.items())
    return {
        "name": name,
        "columns": columns,
        "prompts": prompts,
        "groups": [
            {
                "prompt": places[group.prompt],
                "column": columns.index(group.column),
                "id": group.prompt_id,
                "samples_in_group": group.num_samples,
                "mean": group.mean,
                "deviation": group.deviation,
                "samples": shelf.shown[number],
            }
            for number, group in in_order
        ],
        "has": shelf.token_numbers(),
        "token_texts": token_text is not None,
    }


class _Shelf:
    """Takes groups as long as there is room."""

    def __init__(self, token_text: TokenText | None) -> None:
        self.taken: dict[int, KeptGroup] = {}
        self.shown: dict[int, list[dict[str, Any]]] = {}
        self._used = 0
        self._token_text = token_text
        self._known: set[int] = set()
        self._prompts: set[str] = set()

    def token_numbers(self) -> list[str]:
        """Names of the numbers of tokens that some answer has."""
        samples = [sample for found in self.shown.values() for sample in found]
        return [name for name in TOKEN_NUMBERS if any(name in sample for sample in samples)]

    def put(self, groups: Iterable[KeptGroup], *, room: int) -> None:
        """Take the groups one by one; those for which there is no room are passed over."""
        for group in groups:
            if id(group) in self._known:
                continue
            samples = [_with_token_texts(dict(s), self._token_text) for s in group.samples]
            size = len(json.dumps(samples)) + 120
            if group.prompt not in self._prompts:
                size += len(json.dumps(group.prompt))
            if self._used + size > room:
                continue
            self._used += size
            self._known.add(id(group))
            self._prompts.add(group.prompt)
            number = len(self.taken)
            self.taken[number], self.shown[number] = group, samples


def _in_turn(groups: Sequence[KeptGroup], columns: Sequence[str]) -> list[KeptGroup]:
    """The first group of every column, then the second of every column, and so on."""
    of_column: dict[str, list[KeptGroup]] = {column: [] for column in columns}
    for group in groups:
        of_column[group.column].append(group)
    longest = max((len(found) for found in of_column.values()), default=0)
    return [found[i] for i in range(longest) for found in of_column.values() if i < len(found)]


def _with_token_texts(sample: dict[str, Any], token_text: TokenText | None) -> dict[str, Any]:
    """Replace token ids by their texts, and cut the digits of their numbers."""
    ids = sample.pop("ids", None)
    if ids is None:
        return sample
    texts = [token_text(number) if token_text else None for number in ids]
    sample["pieces"] = [f"⟨{i}⟩" if t is None else t for i, t in zip(ids, texts, strict=True)]
    for name in TOKEN_NUMBERS:
        if name in sample:
            sample[name] = [short(value, digits=4) for value in sample[name]]
    return sample
