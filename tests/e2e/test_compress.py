"""stage=compress with the real LLM Compressor, in an environment of its own, and the real vLLM."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from rlhf_ray.models.builtin import resolve_model_path
from tests.e2e.run_command import REPOSITORY

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.nightly]

METHODS = ["int8", "int4", "int8_activations", "magnitude", "magnitude_2_4", "wanda", "wanda_2_4"]


@pytest.fixture(scope="module")
def compress_python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress") / "venv"
    subprocess.run(
        [str(REPOSITORY / "launch" / "setup_compress.sh")],
        check=True,
        timeout=500,
        env={**os.environ, "RLHF_RAY_COMPRESS_VENV": str(folder)},
    )
    return folder / "bin" / "python"


def test_forms_of_a_model(make_run, compress_python, tmp_path):
    shown = [{"prompt": f"What is {a}+4?", "answer": str(a + 4)} for a in range(10)]
    demonstrations = tmp_path / "demonstrations.jsonl"
    demonstrations.write_text("".join(json.dumps(row) + "\n" for row in shown))
    run = make_run(
        "recipe=demo",
        "stage=compress",
        f"model.path={resolve_model_path('builtin:arithmetic', seed=0)}",
        f"compress.python={compress_python}",
        f"compress.methods=[{','.join(METHODS)}]",
        f"examples.eval_path={demonstrations}",
        "examples.max_tokens=64",
        "evaluation.limit=32",
    ).succeed(800)
    forms = json.loads((run.output / "compression.json").read_text())["forms"]
    assert list(forms) == ["original", *METHODS]
    original = forms["original"]
    assert not any(form["error"] for form in forms.values())

    # 4 bytes a weight become 1, or a half; embeddings, norms and scales stay.
    share = {name: form["bytes"] / original["bytes"] for name, form in forms.items()}
    assert share["int4"] < share["int8"] < 0.5
    assert share["int8_activations"] < 0.5
    for name in METHODS[3:]:
        assert forms[name]["zero_share"] == pytest.approx(0.5, abs=0.01)
    assert forms["int8"]["zero_share"] < 0.1

    # Fewer bits hardly change what it says; what half of the weights is missing from does.
    perplexity = {name: form["perplexity"] for name, form in forms.items()}
    assert 1 < perplexity["original"] < 3
    for name in METHODS[:3]:
        assert perplexity[name] == pytest.approx(perplexity["original"], rel=0.03)
    for name in ("magnitude_2_4", "wanda", "wanda_2_4"):
        assert perplexity[name] > 1.05 * perplexity["original"]

    assert original["runs_here"]
    assert original["win_rate"] is None
    for name in ("int8_activations", *METHODS[3:]):
        assert forms[name]["runs_here"], forms[name]["engine_error"]
        assert forms[name]["tokens_per_s"] > 0
    # Eight bits answer as the original does. It is often wrong: a pruned form may be better.
    reward = {name: form["reward"]["mean"] for name, form in forms.items() if form["runs_here"]}
    assert reward["int8_activations"] == pytest.approx(reward["original"], abs=0.05)
    assert forms["int8_activations"]["win_rate"]["mean"] == pytest.approx(0.5, abs=0.05)
    for name in METHODS[4:]:
        wins = forms[name]["win_rate"]["mean"] - 0.5
        assert wins * (reward[name] - reward["original"]) > 0, "the two say opposite things"
    for name in ("int8", "int4"):
        # It depends on the machine; then the report says why.
        assert forms[name]["runs_here"] != bool(forms[name]["engine_error"])
    assert (run.output / "table.md").read_text().strip() in run.text
