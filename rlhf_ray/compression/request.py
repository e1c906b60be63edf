"""What `apply.py` is asked for and answers; the two share JSON files and no imports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.compression.run_command import run_command
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.config.groups.deploy import CompressConfig
from rlhf_ray.records.supervised import LabelledTokens

_SCRIPT = Path(__file__).with_name("apply.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compressed:
    """What one method has made of a model.

    Attributes:
        path: of the folder; None where the method failed.
        perplexity: on the demonstrations; None without any.
        zero_share: of the weights of the layers that it changes.
        error: why it failed; empty where it did not.
    """

    name: str
    path: Path | None
    perplexity: float | None
    zero_share: float
    seconds: float
    error: str


def compress(
    model: str,
    settings: CompressConfig,
    *,
    calibration: Sequence[Sequence[int]],
    demonstrations: Sequence[LabelledTokens],
    output: Path,
    seed: int,
) -> tuple[float | None, list[Compressed]]:
    """Apply every method, each to a fresh copy of the model.

    Args:
        calibration: prompts as token ids, which the methods look at.
        demonstrations: what the perplexity is measured on.
        output: takes a folder for each method, and the log.

    Returns:
        the perplexity of the model itself, and what each method gave, in order.

    Raises:
        RunFailed: the child process failed; a method that fails is a result.
    """
    request = {
        "model": model,
        "methods": settings.methods,
        "ignore": settings.ignore,
        "sparsity": settings.sparsity,
        "smoothing": settings.smoothing,
        "calibration": [list(row) for row in calibration],
        "demonstrations": [
            {"token_ids": d.token_ids.tolist(), "mask": d.loss_mask.tolist()}
            for d in demonstrations
        ],
        "folder": str(output),
        "seed": seed,
    }
    files = output / "request.json", output / "result.json"
    files[0].write_text(json.dumps(request), encoding="utf-8")
    files[1].unlink(missing_ok=True)
    run_command(
        [settings.python, "-P", str(_SCRIPT), *map(str, files)],
        log=output / "logs" / "compress.log",
        what="compressing",
        timeout_s=settings.timeout_s,
    )
    if not files[1].exists():
        raise RunFailed(f"compressing ended without {files[1]}")
    result = json.loads(files[1].read_text(encoding="utf-8"))
    for file in files:
        file.unlink()
    found = [_compressed(name, value) for name, value in result["methods"].items()]
    return result["original"]["perplexity"], found


def _compressed(name: str, value: dict[str, Any]) -> Compressed:
    path = value.get("path")
    return Compressed(
        name=name,
        path=None if path is None else Path(path),
        perplexity=value.get("perplexity"),
        zero_share=value.get("zero_share", 0.0),
        seconds=value["seconds"],
        error=value.get("error", ""),
    )
