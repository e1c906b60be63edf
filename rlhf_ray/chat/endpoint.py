"""Client of one model behind an OpenAI-compatible endpoint, for the chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from rlhf_ray.data.messages import Message

if TYPE_CHECKING:
    from openai import OpenAI

# Signs in a server's error that prompt and answer together are too long: words of vLLM, OpenAI's
# code.
_TOO_LONG = ("maximum context length", "context_length_exceeded")


class EndpointFailed(Exception):  # noqa: N818 - it reads as a sentence
    """The endpoint gave no answer, or broke off in it; the message is for the user."""


class TooLong(EndpointFailed):
    """The chat is longer than the model's context."""


class ChatEndpoint:
    """A model that answers chats.

    Attributes:
        name: label of the model on the screen.

    Args:
        model: name of the model in requests.
        settings: of every request, such as temperature.
    """

    def __init__(self, client: OpenAI, *, model: str, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self._client = client
        self._model = model
        self._settings = settings

    def answer(self, messages: Sequence[Message]) -> Iterator[str]:
        """Yield the answer piece by piece; closing the generator stops the server's answer.

        The first piece comes as soon as the server has accepted the chat, and may be empty.

        Raises:
            TooLong: the chat does not fit; raised before the first piece.
            EndpointFailed: the server failed, before or in the answer.
        """
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
    """Turn the client library's errors into messages for the user.

    Raises:
        EndpointFailed: with the server's own words where it gave any.
    """
    import openai

    try:
        yield
    except openai.BadRequestError as error:
        if any(words in str(error) for words in _TOO_LONG):
            raise TooLong(error.message) from error
        raise EndpointFailed(f"the server refuses: {error.message}") from error
    except openai.APITimeoutError as error:
        raise EndpointFailed("no word came within chat.timeout_s") from error
    except openai.APIConnectionError as error:
        raise EndpointFailed(f"the server cannot be reached: {error.__cause__ or error}") from error
    except openai.APIError as error:
        raise EndpointFailed(error.message) from error


def first_model(client: OpenAI) -> str:
    """Name of the first model that an endpoint lists.

    Raises:
        EndpointFailed: it lists none, or does not answer.
    """
    with explained():
        for model in client.models.list():
            return model.id
    raise EndpointFailed("the server lists no model")
