"""Program that renders tiny chats with a template within limits of time and memory.

    python -m rlhf_ray.models.checks.template_trial < REQUEST

Its last line is a JSON text: the problem, or nothing.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

_USER = {"role": "user", "content": "Hello"}
_CHATS = (
    ([_USER], True),
    ([_USER, {"role": "assistant", "content": "Hi"}], False),
    ([{"role": "system", "content": "Be brief."}, _USER], True),
)
_LONGEST = 1_000_000


def main() -> None:
    """Try the template of the request, and print what is wrong with it."""
    request = json.loads(sys.stdin.read())
    _limit(request["cpu_s"], request["memory_bytes"])
    problem = next(
        (p for chat, prompts in _CHATS if (p := _problem(request, chat, prompts=prompts))), ""
    )
    print(json.dumps(problem))


def _limit(cpu_s: int, memory_bytes: int) -> None:
    """Limits for what is to come: more than the imports have taken already."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _problem(request: dict[str, Any], chat: list[dict[str, str]], *, prompts: bool) -> str:
    # The library's annotations lack the variables of a template.
    render: Callable[..., Any] = render_jinja_template
    try:
        texts, _ = render(
            conversations=[chat],
            chat_template=request["template"],
            add_generation_prompt=prompts,
            **request["specials"],
        )
    except TemplateSyntaxError as error:
        return f"is broken: line {error.lineno}: {error}"
    except TemplateError:
        return ""  # It refuses this chat in words of its own: the rows decide.
    except MemoryError:
        mebibytes = request["memory_bytes"] >> 20
        return f"takes more than {mebibytes} MiB of memory for a chat of two messages"
    except RecursionError:
        return "calls itself without end"
    except Exception as error:  # noqa: BLE001 - a template is a program of a stranger
        return f"fails on a chat of two messages: {type(error).__name__}: {error}"
    if len(texts[0]) > _LONGEST:
        return f"makes {len(texts[0]):,} characters of a chat of two messages"
    return ""


if __name__ == "__main__":
    main()
