"""The page in a real browser, with the network off: panels have content, the console is empty."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.report.report_file import write_comparison, write_report
from tests.unit.report.test_page import HOSTILE, a_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = [
    pytest.mark.unit_slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
# What a panel must hold, by its id: tags, and how many of each at least.
CONTENT = {
    "head": {"table": 3},
    "alarms": {"table": 1},
    "curves": {"canvas": 6},
    "time": {"svg": 1, "table": 2, "input": 1, "i": 10},
    "answers": {"select": 5, "pre": 10, "ins": 1},
    "groups": {"svg": 1, "canvas": 4},
    "numerics": {"canvas": 2},
    "failures": {"canvas": 1, "table": 1, "pre": 1},
    "memory": {"canvas": 1},
}


class Panels(html.parser.HTMLParser):
    """The tags and the text of every section of a page, by its id."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.tags: dict[str, list[str]] = {}
        self.texts: dict[str, str] = {}
        self.every: list[str] = []
        self._open = ""
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.every.append(tag)
        if tag == "section":
            self._open = dict(attrs)["id"]
            self.tags[self._open], self.texts[self._open] = [], ""
        elif self._open:
            self.tags[self._open].append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open] += data


@pytest.fixture
def browse(tmp_path) -> Callable[[Path], tuple[str, list[str]]]:
    """Open a page with all its folds; gives its elements as text, and what the console says."""

    def open_page(path: Path) -> tuple[str, list[str]]:
        assert CHROMIUM
        done = subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000"),
                *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"),
                f"{path.as_uri()}#all",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return done.stdout.split("<body>")[1].split('<script id="data"')[0], console

    return open_page


def test_every_panel_has_content_and_the_console_is_empty(tmp_path, browse):
    dom, console = browse(write_report(a_run(tmp_path / "run", text=HOSTILE)))
    assert console == []
    panels = Panels(dom)
    assert list(panels.tags) == list(CONTENT)
    for name, content in CONTENT.items():
        counts = {tag: panels.tags[name].count(tag) for tag in content}
        assert all(counts[tag] >= least for tag, least in content.items()), (name, counts)
    assert "img" not in panels.every
    assert HOSTILE in panels.texts["answers"]
    assert "generator_1" in panels.texts["time"]
    assert not re.search(r"NaN|undefined|Infinity|\[object", "".join(panels.texts.values()))


def test_a_comparison_and_an_empty_folder_open(tmp_path, browse):
    (tmp_path / "empty").mkdir()
    for path in (
        write_comparison([a_run(tmp_path / "one"), a_run(tmp_path / "two")]),
        write_report(tmp_path / "empty"),
    ):
        dom, console = browse(path)
        assert console == []
        assert "cannot be shown" not in dom
        assert "data-opened-ms" in dom
