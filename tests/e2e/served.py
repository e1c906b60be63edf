"""`stage=serve` as a process, with the built-in model that knows sums."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil

from tests.e2e.run_command import REPOSITORY

VARIABLE, KEY = "RLHF_RAY_TEST_KEY", "a-key-that-nobody-else-has"
# All that the model has learnt, and answers rightly nearly always when nothing is sampled.
SUMS = {f"What is {a}+{b}?": str(a + b) for a in range(10) for b in range(10)}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
LONG: dict[str, Any] = {
    "max_tokens": 200,
    "temperature": 0,
    "extra_body": {"ignore_eos": True},
}


class Facts:
    """The file in which a service says where it is."""

    def __init__(self, output: Path) -> None:
        self._file = output / "serve.json"

    def wait(self, log: Callable[[], str], timeout_s: float = 240) -> dict[str, Any]:
        """Its content, as soon as it is there; `log` is shown where it never is."""
        deadline = time.monotonic() + timeout_s
        while not self._file.exists():
            shown = log()
            assert time.monotonic() < deadline, shown
            time.sleep(0.2)
        return json.loads(self._file.read_text())


class Served:
    """`stage=serve` as a process."""

    def __init__(self, output: Path, *overrides: str) -> None:
        self.output = output
        self.log = output.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "rlhf_ray.main", "stage=serve"),
                    *("model.path=builtin:arithmetic", f"serve.token_variable={VARIABLE}"),
                    *("generation=cpu", "generation.kv_cache_gib=0.1", f"output_dir={output}"),
                    *("generation.max_num_seqs=32", "generation.max_num_batched_tokens=512"),
                    *overrides,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
            )

    def facts(self) -> dict[str, Any]:
        """What serve.json says, as soon as it is there."""

        def log() -> str:
            assert self.process.poll() is None, self.log.read_text()
            return self.log.read_text()

        return Facts(self.output).wait(log)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine(self) -> psutil.Process:
        (found,) = [p for p in self.family() if "EngineCore" in " ".join(p.cmdline())]
        return found

    def metric(self, beginning: str) -> float:
        """Of the line that begins like this."""
        url = self.facts()["url"].removesuffix("/v1")
        request = urllib.request.Request(
            f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        return float(next(li for li in lines if li.startswith(beginning)).rpartition(" ")[2])

    def end(self) -> None:
        """However it is: it is gone then."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=10)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def try_to_ask(client: openai.OpenAI, text: str, statuses: set[int]) -> str | None:
    """The answer; None, and its status added to `statuses`, where there is an error."""
    try:
        reply = client.chat.completions.create(model="arithmetic", messages=user(text), **GREEDY)
    except openai.APIStatusError as error:
        statuses.add(error.status_code)
        return None
    return reply.choices[0].message.content


def ask_until_answered(client: openai.OpenAI, text: str, timeout_s: float) -> tuple[str, set[int]]:
    """The answer, and the statuses of the errors before it."""
    deadline = time.monotonic() + timeout_s
    statuses: set[int] = set()
    while (reply := try_to_ask(client, text, statuses)) is None:
        assert time.monotonic() < deadline, statuses
        time.sleep(0.5)
    return reply, statuses


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
