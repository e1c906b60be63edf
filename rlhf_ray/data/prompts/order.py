"""Endless and resumable order of rows, shuffled per epoch."""

from __future__ import annotations

import hashlib
import random
from array import array
from dataclasses import dataclass
from typing import Any

from rlhf_ray.data.rows import DataError

_ROWS = "rows_fingerprint"
_TASKS = "tasks"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One place in the order.

    Attributes:
        index: number of places before this one.
        epoch: from 0.
        row: number of the row at this place.
    """

    index: int
    epoch: int
    row: int


class RowOrder:
    """Row numbers, epoch after epoch.

    The order depends only on the data, the seed and the position, not on the number of workers or
    the batch size.

    Args:
        kind: kind of rows in the plural ("prompts"), for messages and the saved state. It is also
            part of the seed of every order but that of the prompts, so that two sources of one
            run are not shuffled alike.
        num_rows: at least 1.
        fingerprint: hash of the rows, in order.
        rows_fingerprint: hash of what belongs to the rows without being part of their tokens; ""
            for rows that are tokens alone.
        tasks: names of the tasks of the rows, for a message; "" for rows without tasks.
        shuffle: shuffle every epoch; otherwise keep the order of the source.
    """

    def __init__(
        self,
        kind: str,
        *,
        num_rows: int,
        fingerprint: str,
        rows_fingerprint: str = "",
        tasks: str = "",
        seed: int,
        shuffle: bool,
    ) -> None:
        assert num_rows > 0, f"a source without {kind} is refused when it is read"
        self._kind = kind
        self._num_rows = num_rows
        self._fingerprint = fingerprint
        self._rows_fingerprint = rows_fingerprint
        self._tasks = tasks
        self._seed = seed
        self._shuffle = shuffle
        self._next_index = 0
        self._order_epoch = -1
        # Eight bytes a row; a list of Python numbers has forty.
        self._order = array("q")

    @property
    def epoch(self) -> int:
        """Epoch of the next place, from 0."""
        return self._next_index // self._num_rows

    def next(self) -> Place:
        """The next place."""
        epoch, position = divmod(self._next_index, self._num_rows)
        place = Place(index=self._next_index, epoch=epoch, row=self._order_of(epoch)[position])
        self._next_index += 1
        return place

    def state_dict(self) -> dict[str, Any]:
        """Position and identity of the data, as plain values."""
        return {"next_index": self._next_index, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last place that was handed out before `state_dict` was called.

        Raises:
            DataError: the state is of other data, another seed or another order, so that some
                rows would be repeated and others skipped.
        """
        identity = self._identity()
        for name in (_ROWS, _TASKS):
            if name not in state:  # A checkpoint of a release that did not keep it.
                identity.pop(name, None)
        different = [
            f"{name} was {state[name]!r} and is {value!r}"
            for name, value in identity.items()
            if state[name] != value
        ]
        renamed = (
            " The tasks have other names: without data.source_column the task of all rows is the "
            "name of the data file, which rewards, their scales and metrics read. Give the file, "
            "or a link to it, the old name."
            if _TASKS in identity and state[_TASKS] != identity[_TASKS]
            else ""
        )
        if different:
            raise DataError(
                f"the checkpoint's stream of {self._kind} is not that of this run: "
                f"{'; '.join(different)}.{renamed} Resume with the same data, tokenizer, chat "
                "template and seed, or start again with resume=never. If only the fingerprint "
                "differs, see whether the template writes the date: model.template_time sets it. "
                "If only "
                f"{_ROWS} differs, a column, message or tool has changed that rewards see, and "
                "the tokens have not"
            )
        self._next_index = state["next_index"]

    def _identity(self) -> dict[str, Any]:
        rows = {_ROWS: self._rows_fingerprint} if self._rows_fingerprint else {}
        tasks = {_TASKS: self._tasks} if self._tasks else {}
        return {
            f"num_{self._kind}": self._num_rows,
            "fingerprint": self._fingerprint,
            **rows,
            **tasks,
            "seed": self._seed,
            "shuffle": self._shuffle,
        }

    def _order_of(self, epoch: int) -> array[int]:
        """Rows in the order of this epoch."""
        if epoch != self._order_epoch:
            self._order = array("q", range(self._num_rows))
            if self._shuffle:
                random.Random(self._order_seed(epoch)).shuffle(self._order)
            self._order_epoch = epoch
        return self._order

    def _order_seed(self, epoch: int) -> int:
        # Prompts had an order before other sources existed, and old checkpoints must stay valid.
        if self._kind == "prompts":
            return stable_seed(self._seed, "order", epoch)
        return stable_seed(self._seed, "order", self._kind, epoch)


_BYTES = 8


def stable_seed(*parts: int | str) -> int:
    """A number from 0 to 2^62 - 1 that depends on the parts and their order.

    Python's own `hash` differs between processes. Two bits are free, so that a caller may add a
    small number without leaving a signed 64-bit integer.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=_BYTES)
    return int.from_bytes(digest.digest(), "big") >> 2
