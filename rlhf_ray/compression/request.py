"""Call of `apply.py`: its request and its result, which are JSON files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import follow_umask
from rlhf_ray.compression.run_command import run_command
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.config.groups.deploy import CompressConfig
from rlhf_ray.records.supervised import LabelledTokens

_SCRIPT = Path(__file__).with_name("apply.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compressed:
    """A compressed model, or the failure of its method.

    Attributes:
        name: name of the method.
        path: folder of the model; None if the method failed.
        perplexity: perplexity on the demonstrations; None without any.
        zero_share: share of zeros among the weights of the layers that the method changes.
        seconds: time that the method took.
        error: why the method failed; empty if it did not.
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
        calibration: prompts as token ids, for methods that calibrate on data.
        demonstrations: texts on which the perplexity is measured.
        output: folder for a subfolder per method and for the log.

    Returns:
        The perplexity of the model itself, and the result of each method, in order.

    Raises:
        RunFailed: the child process failed; the failure of a single method is a result.
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
    for name in settings.methods:
        follow_umask(output / name)
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
