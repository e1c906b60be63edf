"""What ends a run, in words for the person who asked for it.

One message each, so that they pickle as they are when they cross processes.
"""

from __future__ import annotations


class RequestError(ValueError):
    """The request cannot be carried out as it stands; the message says what to change.

    Ends a run with exit status 2 and no traceback.
    """


class ConfigError(RequestError):
    """The configuration is wrong; the message lists every problem that was found."""


class RunFailed(RuntimeError):  # noqa: N818 - it reads as a sentence where it is raised
    """The run failed while it was running: role, rank, phase, step, and what to try.

    Ends a run with exit status 1.
    """
