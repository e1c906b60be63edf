"""stage=chat: a chat in the terminal, with an endpoint or with a model that is served for it."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.chat.endpoint import ChatEndpoint, EndpointFailed, first_model
from rlhf_ray.chat.history import History
from rlhf_ray.chat.loop import HELP, Chat
from rlhf_ray.chat.screen import TerminalScreen
from rlhf_ray.config.bearer_token import BearerToken, read_token
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.deploy import ChatConfig
from rlhf_ray.config.run import Config
from rlhf_ray.run_folder.place import prepare_place
from rlhf_ray.serving.local import ServedModel, private_endpoint
from rlhf_ray.stages.deploy.serve import LOGS, served_model
from rlhf_ray.stages.request_checks import check_request
from rlhf_ray.stages.stage import FolderUse, Stage

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
    logs = Path(config.output_dir) / LOGS
    if chat.url is None or chat.compare_path is not None:
        prepare_place(Path(config.output_dir))
    with ExitStack() as stack:

        def here(served: ServedModel, index: int) -> ChatEndpoint:
            screen.note(f"loading {served.model.path}")
            endpoint = private_endpoint(served, index=index, logs=logs, report=screen.note)
            url, own = stack.enter_context(endpoint)
            return _speaker(chat, stack.enter_context(_client(chat, url, own)), served.name)

        if chat.url is not None:
            speakers = [_at(chat, stack, "chat.url", chat.url, chat.model, token)]
        else:
            speakers = [here(served_model(config, report=screen.note), 0)]
        if chat.compare_url is not None:
            key, wanted = "chat.compare_url", chat.compare_model
            speakers.append(_at(chat, stack, key, chat.compare_url, wanted, token))
        elif chat.compare_path is not None:
            # Another model, with its own tokenizer.
            model = dataclasses.replace(config.model, path=chat.compare_path, tokenizer_path=None)
            serve = dataclasses.replace(config.serve, model_name=None)
            other = dataclasses.replace(config, model=model, serve=serve)
            speakers.append(here(served_model(other, report=screen.note), 1))
        _tell_apart(speakers)
        names = " and ".join(speaker.name for speaker in speakers)
        screen.note(f"talking to {names}\n{HELP}")
        Chat(screen, speakers, History(chat.system)).run()
    screen.note("(ended)")
    return 0


def _at(
    chat: ChatConfig,
    stack: ExitStack,
    key: str,
    url: str,
    model: str | None,
    token: BearerToken | None,
) -> ChatEndpoint:
    client = stack.enter_context(_client(chat, url, token))
    try:
        found = first_model(client)
    except EndpointFailed as error:
        raise RequestError(f"{key}={url}: {error}") from error
    return _speaker(chat, client, model or found)


def _client(
    chat: ChatConfig, url: str, token: BearerToken | None
) -> AbstractContextManager[OpenAI]:
    from openai import OpenAI

    # The library insists on a key, also where the endpoint asks for none.
    secret = token.secret if token else "none"
    return OpenAI(base_url=url, api_key=secret, timeout=chat.timeout_s, max_retries=0)


def _speaker(chat: ChatConfig, client: Any, model: str) -> ChatEndpoint:
    settings = {
        "max_tokens": chat.max_tokens,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
    }
    return ChatEndpoint(client, model=model, name=model, settings=settings)


def _tell_apart(speakers: list[ChatEndpoint]) -> None:
    """Two models of one name are told apart by a number."""
    if len({speaker.name for speaker in speakers}) < len(speakers):
        for number, speaker in enumerate(speakers, start=1):
            speaker.name = f"{speaker.name} ({number})"


def _describe(config: Config) -> str:
    chat, here = config.chat, f"{config.model.path}, served on this machine"
    other = chat.compare_url or chat.compare_path
    return f"# Chat\nwith {chat.url or here}" + (f", next to {other}" if other else "")


STAGE = Stage(name="chat", describe=_describe, run=run, folder=FolderUse.NONE, check=check_request)
