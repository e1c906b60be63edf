"""DeepSpeed's guess that there is no GPU is off the screen; its other warnings are on it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from rlhf_ray.observe.output_capture import quiet_device_guess

GUESS = "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to"


def test_only_the_guess_is_left_out():
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("DeepSpeed")
    before = list(logger.filters)
    logger.addHandler(handler)
    try:
        quiet_device_guess()
        quiet_device_guess()
        logger.warning("%s detect it.", GUESS)
        logger.warning("the loss is %s", "nan")
        assert len(logger.filters) <= len(before) + 1
    finally:
        logger.removeHandler(handler)
        logger.filters[:] = before
    assert said == ["the loss is nan"]


@pytest.mark.slow
def test_the_library_still_says_it_in_these_words():
    """A release that says it in other words, or through another logger, would be heard again."""
    program = (
        "from deepspeed.accelerator import real_accelerator\n"
        "from rlhf_ray.observe.output_capture import quiet_device_guess\n"
        "for call in (print, quiet_device_guess):\n"
        "    call()\n"
        "    real_accelerator.ds_accelerator = None\n"
        "    real_accelerator.get_accelerator()\n"
        "    print('asked', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin"},
    )
    first, second, _ = done.stdout.split("asked")
    assert GUESS in first
    assert GUESS not in second
