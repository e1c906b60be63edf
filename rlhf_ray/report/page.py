"""The page: one HTML file with its data, styles and scripts in it.

Texts of users reach the page as compressed data alone, and its scripts show them as text nodes. So
no text can become a tag, and a policy in the page forbids it every request to a network.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from rlhf_ray.report.curves import MAX_METRICS, MAX_POINTS

MAX_BYTES = 2_000_000
# Size of the answers before compression, at first.
_CHARACTERS = 4_000_000
MOST_TRIES = 6
# Points of a curve and curves that a page has at least.
_FEWEST = (100, 50)
_SCRIPTS = (
    *("read.js", "elements.js", "diff.js", "charts.js", "time.js", "browser.js", "panels.js"),
    "page.js",
)
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


def make_page(
    title: str,
    make: Callable[[int, int, int], dict[str, Any]],
    *,
    max_bytes: int = MAX_BYTES,
    num_tries: int = MOST_TRIES,
) -> str:
    """The page of the most detailed data that keeps it below `max_bytes`.

    Args:
        make: data of about so many characters of answers, with at most so many points of a curve,
            and so many curves.
        num_tries: pages with answers that are made until one is small enough; each takes seconds.

    Raises:
        ValueError: the page is too large without answers and with few curves.
    """
    points, metrics = MAX_POINTS, MAX_METRICS
    page = _page(title, make(_CHARACTERS, points, metrics))
    if (size := _size(page)) <= max_bytes:
        return page
    bare = _page(title, make(0, points, metrics))
    while _size(bare) > max_bytes:
        if (points, metrics) == _FEWEST:
            raise ValueError(f"the report has {_size(bare):,} bytes, and {max_bytes:,} are allowed")
        points, metrics = max(points // 2, _FEWEST[0]), max(metrics // 2, _FEWEST[1])
        bare = _page(title, make(0, points, metrics))
    characters = _CHARACTERS
    for _ in range(num_tries):
        # Answers compress alike, so that the next try is near the bound; smaller in any case.
        room = (max_bytes - _size(bare)) / max(size - _size(bare), 1)
        characters = int(characters * min(0.8, 0.95 * room))
        page = _page(title, make(characters, points, metrics))
        if (size := _size(page)) <= max_bytes:
            return page
    return bare


def _size(page: str) -> int:
    return len(page.encode())


def packed(data: Any) -> str:
    """Data as the page holds it: JSON, compressed, in base64."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def asset(name: str) -> str:
    """Text of a file of the page."""
    return resources.files("rlhf_ray.report").joinpath("assets", name).read_text(encoding="utf-8")


def scripts() -> Sequence[str]:
    """Names of the page's own scripts, in order."""
    return _SCRIPTS


def _page(title: str, data: dict[str, Any]) -> str:
    own = "\n".join(asset(name) for name in _SCRIPTS)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{asset("uPlot.min.css")}</style>
<style>{asset("page.css")}</style>
</head>
<body>
<main id="report"><p id="waiting">Opening the report. It needs JavaScript, and a browser of 2023 or
later.</p></main>
<script id="data" type="application/json">"{packed(data)}"</script>
<script>{asset("uPlot.iife.min.js")}</script>
<script>
{own}
</script>
</body>
</html>
"""
