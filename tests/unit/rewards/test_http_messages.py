"""Replies of services that are no answers."""

from __future__ import annotations

import pytest

from rlhf_ray.rewards.http.client import _reason
from rlhf_ray.rewards.http.messages import BadReply, read_reply

DEEP = b"[" * 100_000


@pytest.mark.parametrize("body", [DEEP, b'{"scores": ' + DEEP, b"", b"\xff", b"{}", b"[]"])
def test_what_is_no_answer_is_a_bad_reply(body):
    with pytest.raises(BadReply):
        read_reply(body, 1)


def test_the_reason_of_an_error_is_at_least_its_text():
    assert _reason(DEEP).startswith("[[[")
    assert _reason(b'{"error": "busy"}') == "busy"
