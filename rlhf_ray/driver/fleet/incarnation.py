"""One engine process over its life, and the signs of life that it gives."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from rlhf_ray.calls import Call, MemberName


class EngineState(enum.Enum):
    """States of an engine; a lost one is dead, and its place has the next incarnation."""

    STARTING = "its process loads the model"
    STALE = "its weights are not those of the run: it waits for a publish and the gate"
    SERVING = "it samples tokens that are trained on"
    SUSPECT = "it has not answered for a while, and gets no new requests"


@dataclass(kw_only=True, slots=True)
class Incarnation:
    """The engine that has a place now.

    Attributes:
        since: time of its creation.
        takes_part: whether the last publish was sent to it.
        ping: the sign of life that it was asked for and has not given.
        asked: time of the last `ping`.
    """

    name: MemberName
    state: EngineState
    since: float
    takes_part: bool = False
    ping: Call | None = None
    asked: float = 0.0

    @property
    def is_replacement(self) -> bool:
        return self.name.incarnation > 1

    @property
    def has_weights(self) -> bool:
        """Whether it holds weights of the run that the gate has seen, or those of its start."""
        return self.state in (EngineState.SERVING, EngineState.SUSPECT) or not self.is_replacement

    @property
    def is_started(self) -> bool:
        return self.state is not EngineState.STARTING
