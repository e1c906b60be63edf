"""Requests to the scoring service: format and checks. The client is `rewards/http/messages.py`."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf_ray.data.chat_fields import Message, Tool, read_tools
from rlhf_ray.data.messages import check_messages
from rlhf_ray.data.rows import BadCell
from rlhf_ray.serving.openai_errors import Refused


class ScoreRequest(BaseModel):
    """Responses to one prompt. Fields that a reward model does not use are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    messages: list[dict[str, Any]] = Field(default_factory=list)
    tools: list[Tool] = Field(default_factory=list)
    prompt: str | None = None
    responses: list[str] = Field(min_length=1)
    finish_reasons: list[str] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ScoreRequest:
        reasons = self.finish_reasons
        if reasons is not None and len(reasons) != len(self.responses):
            raise ValueError(
                f"finish_reasons has {len(reasons)} entries for {len(self.responses)} responses"
            )
        for reason in reasons or ():
            if reason not in ("stop", "length"):
                raise ValueError(f"a finish reason is {reason!r}; it must be stop or length")
        if not self.messages and not (self.prompt or "").strip():
            raise ValueError("the request has neither `messages` nor a `prompt`")
        return self

    @property
    def chat(self) -> list[Message]:
        """The prompt as a chat; a plain text becomes one user message."""
        return self.messages or [{"role": "user", "content": self.prompt}]

    @property
    def reasons(self) -> list[str]:
        """Finish reason of each response; "stop" if the request gives none."""
        return self.finish_reasons or ["stop"] * len(self.responses)


def read_request(body: bytes) -> ScoreRequest:
    """Parse a request's body.

    Raises:
        Refused: 400 if it is not JSON, 422 if its fields are wrong.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    try:
        request = ScoreRequest.model_validate(fields)
        if request.messages:
            request.messages = check_messages(request.messages, "messages")
        request.tools = read_tools(request.tools, "tools")
        _check_texts(request)
    except ValidationError as error:
        raise Refused(422, _words(error)) from error
    except (BadCell, UnicodeEncodeError) as error:
        raise Refused(422, str(error)) from error
    return request


def _check_texts(request: ScoreRequest) -> None:
    """Refuse lone surrogates, which JSON escapes can spell and tokenizers do not take.

    Raises:
        UnicodeEncodeError: a text has one.
    """
    chat = json.dumps([request.chat, request.tools], ensure_ascii=False)
    for text in (chat, *request.responses):
        text.encode("utf-8")


def _words(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, found['loc'])) or 'the request'}: {found['msg']}"
        for found in error.errors(include_url=False, include_input=False)
    )
