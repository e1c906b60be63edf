"""Request to the other Python and its result, with a stand-in for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from rlhf_ray.compression.request import compress
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.config.groups.deploy import CompressConfig
from rlhf_ray.records.supervised import LabelledTokens

ANSWER = {
    "original": {"perplexity": 2.0},
    "methods": {
        "int8": {"path": "/made/int8", "perplexity": 2.5, "zero_share": 0.1, "seconds": 1.0},
        "wanda": {"error": "ValueError: no such layer", "seconds": 0.5},
    },
}


def stand_in(folder: Path, answer: str) -> str:
    """A Python that keeps the request and writes an answer, instead of running apply.py."""
    script = folder / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import shutil, sys\n"
        "isolated, code, request, result = sys.argv[1:]\n"
        "assert isolated == '-P' and code.endswith('apply.py')\n"
        f"shutil.copy(request, {str(folder / 'seen.json')!r})\n"
        f"if {answer!r}: open(result, 'w').write({answer!r})\n"
    )
    script.chmod(0o755)
    return str(script)


def ask(folder: Path, answer: str):
    settings = CompressConfig(methods=["int8", "wanda"], python=stand_in(folder, answer))
    shown = LabelledTokens(
        token_ids=torch.tensor([1, 2, 3]), loss_mask=torch.tensor([False, False, True])
    )
    return compress(
        "/a/model",
        settings,
        calibration=[(4, 5), (6,)],
        demonstrations=[shown],
        output=folder,
        seed=7,
    )


def test_request_and_answer(tmp_path):
    perplexity, (int8, wanda) = ask(tmp_path, json.dumps(ANSWER))
    assert perplexity == 2.0
    assert (int8.path, int8.perplexity, int8.zero_share) == (Path("/made/int8"), 2.5, 0.1)
    assert (wanda.path, wanda.error) == (None, "ValueError: no such layer")
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["model"] == "/a/model"
    assert seen["calibration"] == [[4, 5], [6]]
    assert seen["demonstrations"] == [{"token_ids": [1, 2, 3], "mask": [False, False, True]}]
    assert (seen["folder"], seen["seed"]) == (str(tmp_path), 7)
    assert not (tmp_path / "request.json").exists()


def test_no_answer(tmp_path):
    (tmp_path / "result.json").write_text("of an earlier run")
    with pytest.raises(RunFailed, match="ended without"):
        ask(tmp_path, "")
