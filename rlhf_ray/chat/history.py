"""Turns of a chat so far."""

from __future__ import annotations

from rlhf_ray.data.messages import Message


class History:
    """Turns of a chat: pairs of the user's text and the model's answer.

    Args:
        system: system message in front of all turns, which is never dropped; None for none.
    """

    def __init__(self, system: str | None = None) -> None:
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._turns: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._turns)

    def messages(self, text: str) -> list[Message]:
        """System message, all turns, and the user's new text."""
        messages = list(self._system)
        for asked, answered in self._turns:
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answered})
        return [*messages, {"role": "user", "content": text}]

    def add(self, asked: str, answered: str) -> None:
        """Append a finished turn."""
        self._turns.append((asked, answered))

    def forget_oldest(self) -> bool:
        """Drop the oldest turn; returns False if there is none."""
        if not self._turns:
            return False
        self._turns.pop(0)
        return True

    def clear(self) -> None:
        """Drop all turns, but not the system message."""
        self._turns.clear()
