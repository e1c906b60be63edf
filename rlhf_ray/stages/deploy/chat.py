"""stage=chat: a chat in the terminal, with an endpoint or with a model that is served for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.chat.endpoint import ChatEndpoint, EndpointFailed, first_model
from rlhf_ray.chat.history import History
from rlhf_ray.chat.loop import HELP, Chat
from rlhf_ray.chat.screen import TerminalScreen
from rlhf_ray.config.bearer_token import BearerToken, read_token
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.serving.local import model_name, private_endpoint
from rlhf_ray.stages.deploy.serve import LOGS, with_model
from rlhf_ray.stages.stage import Stage

if TYPE_CHECKING:
    from openai import OpenAI


def run(config: Config) -> int:
    """Talk until the user ends it.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: a model or an endpoint is not there, or the key is missing.
        RunFailed: the server of a model did not start.
    """
    chat, screen = config.chat, TerminalScreen()
    token = read_token("chat.token_variable", chat.token_variable)
    with ExitStack() as stack:
        if chat.url is not None:
            speakers = [_at(config, stack, "chat.url", chat.url, chat.model, token)]
        else:
            speakers = [_here(config, stack, 0, screen.note)]
        if chat.compare_url is not None:
            key, wanted = "chat.compare_url", chat.compare_model
            speakers.append(_at(config, stack, key, chat.compare_url, wanted, token))
        elif chat.compare_path is not None:
            speakers.append(_here(_with_path(config, chat.compare_path), stack, 1, screen.note))
        _tell_apart(speakers)
        names = " and ".join(speaker.name for speaker in speakers)
        screen.note(f"talking to {names}\n{HELP}")
        Chat(screen, speakers, History(chat.system)).run()
    screen.note("(ended)")
    return 0


def _at(
    config: Config,
    stack: ExitStack,
    key: str,
    url: str,
    model: str | None,
    token: BearerToken | None,
) -> ChatEndpoint:
    client = stack.enter_context(_client(config, url, token))
    try:
        found = first_model(client)
    except EndpointFailed as error:
        raise RequestError(f"{key}={url}: {error}") from error
    return _speaker(config, client, model or found)


def _here(
    config: Config, stack: ExitStack, index: int, report: Callable[[str], None]
) -> ChatEndpoint:
    name = model_name(config)
    config = with_model(config)
    report(f"loading {config.model.path}")
    logs = Path(config.output_dir) / LOGS
    endpoint = private_endpoint(config, name, index=index, logs=logs, report=report)
    url, token = stack.enter_context(endpoint)
    client = stack.enter_context(_client(config, url, token))
    return _speaker(config, client, name)


def _client(config: Config, url: str, token: BearerToken | None) -> AbstractContextManager[OpenAI]:
    from openai import OpenAI

    # The library insists on a key, also where nobody asks for it.
    secret = token.secret if token else "none"
    return OpenAI(base_url=url, api_key=secret, timeout=config.chat.timeout_s, max_retries=0)


def _speaker(config: Config, client: Any, model: str) -> ChatEndpoint:
    chat = config.chat
    settings = {
        "max_tokens": chat.max_tokens,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
    }
    return ChatEndpoint(client, model=model, name=model, settings=settings)


def _with_path(config: Config, path: str) -> Config:
    """The same for another model, with its own tokenizer."""
    model = dataclasses.replace(config.model, path=path, tokenizer_path=None)
    serve = dataclasses.replace(config.serve, model_name=None)
    return dataclasses.replace(config, model=model, serve=serve)


def _tell_apart(speakers: list[ChatEndpoint]) -> None:
    """Two models of one name are told apart by a number."""
    if len({speaker.name for speaker in speakers}) < len(speakers):
        for number, speaker in enumerate(speakers, start=1):
            speaker.name = f"{speaker.name} ({number})"


def _describe(config: Config) -> str:
    chat, here = config.chat, f"{config.model.path}, served on this machine"
    other = chat.compare_url or chat.compare_path
    return f"# Chat\nwith {chat.url or here}" + (f", beside {other}" if other else "")


STAGE = Stage(name="chat", describe=_describe, run=run)
