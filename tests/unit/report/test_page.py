"""The page: its size, what of a user's text becomes part of it, and its scripts."""

from __future__ import annotations

import base64
import gzip
import html.parser
import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.report.page import asset, scripts
from rlhf_ray.report.report_file import write_comparison, write_report
from tests.unit.report.run_folders import group, write_metrics, write_spans, write_step

NODE = shutil.which("node")
HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\u2028&amp;]]>"
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def opened(path: Path, *compared: list[list[str]]) -> dict[str, Any]:
    """What the scripts of a page show; see page_in_node.js."""
    assert NODE
    script = Path(__file__).with_name("page_in_node.js")
    pairs = [json.dumps(pair) for pair in compared]
    done = subprocess.run(
        [NODE, str(script), str(path), *pairs], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def data_of(page: str) -> dict[str, Any]:
    [packed] = re.findall(r'<script id="data" type="application/json">"([^"]*)"</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def a_run(folder: Path, *, text: str = "an answer") -> Path:
    """A run of 12 steps with all files."""
    write_metrics(
        folder,
        12,
        lambda step: {
            "reward/mean": step / 12,
            "publish/probe_gap_max": 1e-6,
            "policy/entropy": None if step == 3 else 1.0,
            "rollout/failed_groups": float(step == 5),
            "engine/kv_cache_use_max": 0.5,
            "time/generate_s": 1.0,
            "time/score_s": 0.25,
            "time/update_s": 0.5,
            "time/step_s": 2.0,
            **({"time/checkpoint_s": 0.2} if step == 6 else {}),
        },
    )
    for step in range(1, 13):
        numbers = {"logprobs": [-0.5, None], "advantages": [1.5, None]}
        if step > 10:
            numbers["updated_logprobs"] = [-0.4, None]
        tokens = {"tokens": {"ids": [5, 6], **numbers}}
        changed = group(text, [f"{text} {step}", text], [1, 0], **(tokens if step > 9 else {}))
        write_step(folder, step, [changed, group(f"{step}", ["a", "b"], [1, 1])])
    write_spans(folder, 12)
    (folder / "config.yaml").write_text("seed: 3\nprompts_per_step: 2\nstage:\n  name: rl\n")
    (folder / "summary.json").write_text(json.dumps({"reward_last": 0.5, "result": text}))
    (folder / "error.log").write_text(f"Traceback\n{text}\n")
    (folder / "startup.json").write_text(
        json.dumps(
            {
                "total_s": 3.0,
                "parts": {"command_s": 1.0, "ray_s": 2.0},
                "roles": {"learner": {"load_s": 1.0}},
            }
        )
    )
    return folder


class Tags(html.parser.HTMLParser):
    """Every tag of a page, as a browser sees them: what is in a script ends with its end tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)


def test_texts_of_users_become_no_part_of_the_page(tmp_path):
    folder = a_run(tmp_path / HOSTILE.replace("/", "_"), text=HOSTILE)
    page = write_report(folder).read_text()
    assert Tags(page).found == [
        *("html", "head", "meta", "meta", "meta", "title", "style", "style", "body", "main", "p"),
        *("script", "script", "script"),
    ]
    assert "onerror" not in page.split("</title>")[1]
    browser = data_of(page)["runs"][0]["browsers"][0]
    assert HOSTILE in browser["prompts"]
    assert any(sample["text"] == HOSTILE for g in browser["groups"] for sample in g["samples"])


def test_no_script_of_the_page_can_parse_html_or_reach_a_network():
    own = "".join(asset(name) for name in scripts())
    banned = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|Function\(|fetch\(|XMLHttp"
    )
    assert re.findall(banned, own) == []
    assert "</script" not in own + asset("uPlot.iife.min.js")
    assert "default-src 'none'" in write_policy()


def write_policy() -> str:
    from rlhf_ray.report.page import make_page

    page = make_page("a", lambda *_: {})
    return re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0]


def test_the_licence_of_the_library_is_with_it():
    assert "MIT License" in asset("uPlot.LICENSE")
    assert "Leon Sorokin" in asset("uPlot.LICENSE")
    assert "1.6.32" in asset("uPlot.iife.min.js")[:100]


def long_run(folder: Path, *, num_steps: int, is_random: bool) -> Path:
    """Many metrics that do not compress, and texts that may not compress either."""
    values = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

    def text() -> str:
        if not is_random:
            return "The same sentence again and again. " * 40
        return "".join(values.choices(letters, k=1500))

    write_metrics(
        folder, num_steps, lambda _: {f"group/metric_{i}": values.random() for i in range(120)}
    )
    for step in range(1, num_steps + 1, max(1, num_steps // 100)):
        write_step(folder, step, [group(f"p{i}", [text(), text()], [0, 1]) for i in range(16)])
    return folder


@pytest.mark.parametrize("is_random", [False, True])
def test_five_hundred_steps_stay_below_two_megabytes(is_random, tmp_path):
    path = write_report(long_run(tmp_path, num_steps=500, is_random=is_random))
    assert path.stat().st_size < 2_000_000
    data = data_of(path.read_text())["runs"][0]
    assert len(data["curves"]["values"]) == 120
    assert len(data["browsers"][0]["groups"]) > 100
    shown = [note for note in data["left_out"] if note.startswith("rollouts: the answers to")]
    assert bool(shown) == is_random or shown


def test_curves_give_way_after_all_answers(tmp_path):
    path = write_report(long_run(tmp_path, num_steps=400, is_random=False), max_bytes=250_000)
    assert path.stat().st_size < 250_000
    data = data_of(path.read_text())["runs"][0]
    assert len(data["curves"]["steps"]) < 400
    assert any("points for 400 steps" in note for note in data["left_out"])


def test_a_bound_that_cannot_be_kept_is_an_error_and_no_endless_loop(tmp_path):
    with pytest.raises(ValueError, match="are allowed"):
        write_report(a_run(tmp_path), max_bytes=50_000)


@needs_node
def test_everything_on_the_page_can_be_opened(tmp_path):
    seen = opened(write_report(a_run(tmp_path / HOSTILE.replace("/", "_"), text=HOSTILE)))
    everything = "\n".join(seen["texts"])
    assert "img" not in seen["tags"]
    assert HOSTILE in everything
    assert seen["headings"][1:] == [
        *("Alarms", "Curves", "Time by phase", "Answers", "Groups and rewards over time"),
        *("Numerics", "Failures", "Memory"),
    ]
    assert ["publish/probe_gap_max"] in seen["charts"]
    assert ["groups of equal rewards"] in seen["charts"]
    assert seen["events"] > 0
    for words in (
        "policy/entropy in step 3",
        "checkpoint, 0.2 s",
        "The learner does not update its weights in 75 % of the time",
        "From the command to the end of the first step: 3.00 s",
        "Traceback",
        "⟨5⟩",
        "reward_last",
        "seed",
        "ratio, updated policy to engine",
        "Log-probabilities after the update were not recorded in this step",
        "One step by worker",
        "generator_1",
    ):
        assert words in everything, words
    assert {
        *(
            "log-probability -0.5",
            "ratio 1.105: the policy after this step to the engine that sampled",
        ),
        *("advantage 1.5", "sampled by the policy", "not sampled: from the environment"),
        "generate: -0.10 s to 0.90 s, 4 calls",
    } <= set(seen["titles"])


@needs_node
def test_the_difference_of_two_answers(tmp_path):
    path = write_report(a_run(tmp_path))
    long = [str(i) for i in range(3000)]
    first, second, third = opened(
        path,
        [["a", " b", " c", " d"], ["a", " x", " c", " d", " e"]],
        [[], ["a"]],
        [long, [f"x{i}" for i in range(3000)]],
    )["compared"]
    assert first == [
        ["same", "a"],
        ["removed", " b"],
        ["added", " x"],
        ["same", " c d"],
        ["added", " e"],
    ]
    assert second == [["added", "a"]]
    assert [kind for kind, _ in third] == ["removed", "added"]


@needs_node
def test_an_empty_folder_opens(tmp_path):
    seen = opened(write_report(tmp_path))
    assert "no metrics of steps" in "\n".join(seen["texts"])


@needs_node
def test_files_of_another_form_do_not_keep_the_page_from_opening(tmp_path):
    a_run(tmp_path)
    odd = {"prompt_id": 5, "prompt": ["x"], "response": None, "reward": "high", "reward_parts": 3}
    odd |= {"weight_versions": [4, [1], ["a", 2], [3, 1]], "finish_reason": 1, "tokens": {}}
    tokens = [
        {"ids": ["a"], "logprobs": [-1]},
        {"ids": [-1], "logprobs": [-1]},
        {"ids": [2**40], "logprobs": [-1]},
        {"ids": [1], "logprobs": ["x"]},
        {"ids": [1, 2], "logprobs": [0]},
    ]
    write_step(
        tmp_path, 13, [[odd], *([{**odd, "prompt": i, "tokens": t}] for i, t in enumerate(tokens))]
    )
    (tmp_path / "startup.json").write_text(
        '{"total_s": "a", "parts": {"x": "y"}, "roles": {"r": null}}'
    )
    (tmp_path / "end.json").write_text('{"seconds": "long", "versions": "none", "cause": 4}')
    (tmp_path / "summary.json").write_text('{"a": {"b": [1, {"c": null}]}}')
    (tmp_path / "best.json").write_text('{"step": 2}')
    (tmp_path / "events.jsonl").write_text('{"event": "engine_lost", "step": "x"}\n')
    (tmp_path / "progress.json").write_text('{"stages": {"a": 4, "b": {"seconds": "x"}}}')
    (tmp_path / "evaluation.json").write_text('{"models": {"m": 3, "n": {"x": true}}}')
    (tmp_path / "samples.jsonl").write_text('{"answers": {"m": {"greedy": [4, {}]}, "n": 3}}\n')
    seen = opened(write_report(tmp_path))
    assert "models side by side" in "\n".join(seen["texts"])


@needs_node
def test_runs_are_compared(tmp_path):
    one, two = a_run(tmp_path / "one" / "run"), a_run(tmp_path / "two" / "run")
    write_metrics(two, 20, lambda step: {"reward/mean": step / 20, "only/here": 1.0})
    (two / "config.yaml").write_text("seed: 4\nprompts_per_step: 2\nstage:\n  name: rl\n")
    path = write_comparison([one, two])
    assert path == one / "comparison.html"
    data = data_of(path.read_text())
    assert data["differences"] == [["seed", "3", "4"]]
    seen = opened(path)
    assert seen["headings"][0] == "one/run · two/run"
    assert ["one/run", "two/run"] in seen["charts"]
    assert "reward_last" in "\n".join(seen["texts"])
