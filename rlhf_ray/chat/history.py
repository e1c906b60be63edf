"""What was said so far."""

from __future__ import annotations

from rlhf_ray.data.messages import Message


class History:
    """Turns of a chat: what the user says, and the answer.

    Args:
        system: is said before everything else, and stays; None says nothing.
    """

    def __init__(self, system: str | None = None) -> None:
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._turns: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._turns)

    def messages(self, text: str) -> list[Message]:
        """All of it and what the user says now."""
        messages = list(self._system)
        for asked, answered in self._turns:
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answered})
        return [*messages, {"role": "user", "content": text}]

    def add(self, asked: str, answered: str) -> None:
        """A turn is over."""
        self._turns.append((asked, answered))

    def forget_oldest(self) -> bool:
        """Leave the oldest turn out; whether there was one."""
        if not self._turns:
            return False
        self._turns.pop(0)
        return True

    def clear(self) -> None:
        """Forget everything but the system's words."""
        self._turns.clear()
