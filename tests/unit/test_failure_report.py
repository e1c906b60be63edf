"""The first line of a failure is on the screen before anything is collected or written."""

from __future__ import annotations

import pytest

from rlhf_ray.config.errors import RequestError, RunFailed, ToldFailure
from rlhf_ray.failure_report import said_at_once


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RunFailed("the gap is 3\n--- more"),
            "rlhf_ray: failed: the gap is 3; ending the workers and writing the report\n",
        ),
        (ValueError("\x1b[31m" + "x" * 999), "rlhf_ray: failed: ValueError: \\x1b[31mxxx"),
        (RunFailed(""), "rlhf_ray: failed: no reason is known; ending"),
        # Said by whoever found it, or refused before anything ran.
        (ToldFailure("learner 0 died"), ""),
        (RequestError("no such file"), ""),
        (KeyboardInterrupt(), ""),
    ],
)
def test_the_first_line_comes_at_once(capfd, error, said):
    with pytest.raises(type(error)), said_at_once():
        raise error
    shown = capfd.readouterr().err
    assert shown.startswith(said)
    assert len(shown) < 400
    assert bool(shown) is bool(said)
