"""A template that explodes for a certain row makes that row a bad one, and costs no more."""

from __future__ import annotations

import copy
import resource
import signal
import threading
import time

import pytest

from rlhf_ray.data.messages import apply_template, apply_template_with_marks
from rlhf_ray.data.rendering import bounds
from rlhf_ray.data.rows import BadCell

ENDLESS = (
    "{% for m in messages %}{% if m.content == 'loop' %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% elif m.content == 'grow' %}{{ 'a' * 10000000000 }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)


@pytest.fixture
def exploding(tokenizer, monkeypatch):
    monkeypatch.setattr(bounds, "CPU_S", 0.2)
    made = copy.deepcopy(tokenizer)
    made.chat_template = ENDLESS
    return made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loop", r"the chat template did not render this row within 0\.2 s of computing"),
        ("grow", "the chat template takes more than 4 GiB of memory for this row"),
    ],
)
def test_a_row_that_explodes_is_a_bad_row(exploding, text, words):
    began = time.monotonic()
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    chat = [{"role": "user", "content": text}]
    with pytest.raises(BadCell, match=words):
        apply_template(chat, exploding, add_generation_prompt=False)
    with pytest.raises(BadCell, match=words):
        apply_template_with_marks(chat, exploding)
    assert time.monotonic() - began < 20
    # Nothing is left behind: other rows, and what follows, have the limits of before.
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    good = [{"role": "user", "content": "good"}]
    assert apply_template(good, exploding, add_generation_prompt=False) == "good"


def test_other_threads_render_without_bounds(exploding):
    said: list[str] = []

    def render() -> None:
        chat = [{"role": "user", "content": "good"}]
        said.append(apply_template(chat, exploding, add_generation_prompt=False))

    thread = threading.Thread(target=render)
    thread.start()
    thread.join(30)
    assert said == ["good"]
