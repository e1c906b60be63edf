"""Errors that end a run, with a message for the user.

The message is the only argument, so the errors can be pickled between processes.
"""

from __future__ import annotations


class RequestError(ValueError):
    """The request cannot be carried out; the message says what to change.

    Ends a run with exit status 2 and no traceback.
    """


class ConfigError(RequestError):
    """The configuration is wrong; the message lists every problem."""


class RunFailed(RuntimeError):  # noqa: N818 - it reads as a sentence where it is raised
    """The run failed; the message has role, rank, phase, step, and what to try.

    Ends a run with exit status 1.
    """
