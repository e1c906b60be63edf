"""A model behind an OpenAI-compatible endpoint, as somebody who answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rlhf_ray.data.messages import Message

if TYPE_CHECKING:
    from openai import OpenAI

# How servers say that prompt and answer together are too long: vLLM in words, OpenAI by a code.
_TOO_LONG = ("maximum context length", "context_length_exceeded")


class SpeakerFailed(Exception):  # noqa: N818 - it reads as a sentence
    """There is no answer, or no rest of it; the message is for people."""


class TooLong(SpeakerFailed):
    """The chat does not fit into what the model can read."""


class ChatEndpoint(Protocol):
    """Somebody who answers.

    Attributes:
        name: for people.
    """

    name: str

    def answer(self, messages: Sequence[Message]) -> Iterator[str]:
        """The answer, piece by piece; whoever stops reading closes it.

        The first piece comes as soon as the chat has been accepted, and may be empty.

        Raises:
            TooLong: before the first piece.
            SpeakerFailed: at any time.
        """
        ...


class EndpointSpeaker:
    """See `ChatEndpoint`.

    Args:
        settings: of every request, such as temperature.
    """

    def __init__(self, client: OpenAI, *, model: str, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self._client = client
        self._model = model
        self._settings = settings

    def answer(self, messages: Sequence[Message]) -> Iterator[str]:
        with explained(), closing(self._open(list(messages))) as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    yield choice.delta.content or ""

    def _open(self, messages: list[Any]) -> Any:
        return self._client.chat.completions.create(
            model=self._model, messages=messages, stream=True, **self._settings
        )


@contextmanager
def explained() -> Iterator[None]:
    """Turn what the client raises into words.

    Raises:
        SpeakerFailed: with what the server says.
    """
    import openai

    try:
        yield
    except openai.BadRequestError as error:
        if any(words in str(error) for words in _TOO_LONG):
            raise TooLong(error.message) from error
        raise SpeakerFailed(f"the server refuses: {error.message}") from error
    except openai.APITimeoutError as error:
        raise SpeakerFailed("no word came within chat.timeout_s") from error
    except openai.APIConnectionError as error:
        raise SpeakerFailed(f"the server cannot be reached: {error.__cause__ or error}") from error
    except openai.APIError as error:
        raise SpeakerFailed(error.message) from error


def first_model(client: OpenAI) -> str:
    """The first model that an endpoint lists.

    Raises:
        SpeakerFailed: it lists none, or does not answer.
    """
    with explained():
        for model in client.models.list():
            return model.id
    raise SpeakerFailed("the server lists no model")
