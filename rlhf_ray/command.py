"""The command as a process: `python -m rlhf_ray`, and `rlhf-ray` where the package is installed.

It handles signals before it imports the rest, which takes a second: one may come at any moment.
"""

from __future__ import annotations

from typing import NoReturn

from rlhf_ray.interrupts import begin_process, leave


def run() -> NoReturn:
    """Carry out the command line of this process, and end it with the exit status."""
    begin_process()
    from rlhf_ray.main import main

    leave(main())
