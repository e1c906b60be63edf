"""The chat template on trial, in a child process with limits, before it renders any row.

A template is a program. jinja's sandbox keeps it from the system, but not from taking all memory
(`'a' * 10000000000`) or from never ending (nested loops).
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.location import (
    by_name,
    check_template_place,
    choose_template,
    explained,
    folder_templates,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU_SECONDS = 10
MEMORY_MIB = 512
# Of the whole trial, with the imports of the child, on a machine that others use too.
_DEADLINE_S = 180.0
_CHILD = "rlhf_ray.models.checks.template_trial"


def check_chat_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Render tiny conversations with the template of a tokenizer, within limits.

    A template that refuses one of them passes: the rows decide.

    Raises:
        RequestError: the template is broken, fails with other words than its own, or takes more
            than the limits.
    """
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    _check(by_name(tokenizer.chat_template), specials, path)


def check_served_template(model: ModelConfig) -> None:
    """Like `check_chat_template`, by the files of a model that an engine reads by itself.

    A hub name is not looked at, nor is the name of a template there: the server finds it.

    Raises:
        RequestError: see `check_chat_template`; or a file cannot be read.
    """
    path = model.tokenizer_path or model.path
    check_template_place(model)
    chosen = model.chat_template
    with explained(path, "model.path", "a chat template"):
        own = folder_templates(Path(path))
        if chosen is None:
            _check(by_name(own), {}, path)
        elif own is not None or Path(chosen).is_file():
            _check({"": choose_template(own, chosen)}, {}, chosen)


def _check(templates: dict[str, str], specials: dict[str, str], path: str) -> None:
    for name, text in templates.items():
        problem = _trial(text, json.dumps(specials, sort_keys=True))
        if problem:
            which = f" {name!r}" if name else ""
            raise RequestError(
                f"the chat template{which} of {path} {problem}. Correct it, or give another one "
                f"with model.chat_template"
            )


@functools.lru_cache(maxsize=32)
def _trial(template: str, specials: str) -> str:
    """Words for what is wrong; empty if nothing is. One process for each template."""
    request = json.dumps(
        {
            "template": template,
            "specials": json.loads(specials),
            "cpu_s": CPU_SECONDS,
            "memory_bytes": MEMORY_MIB * 2**20,
        }
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", _CHILD],
            input=request,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_DEADLINE_S,
            check=False,
            # The child finds this package where this process does.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    except subprocess.TimeoutExpired:
        return f"did not render a chat of two messages within {_DEADLINE_S:g} s"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"did not render a chat of two messages within {CPU_SECONDS} s of computing"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        return f"could not be tried: its process ended with status {done.returncode}: {last}"
    return json.loads(done.stdout.splitlines()[-1])
