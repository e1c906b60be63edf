"""Signed errors of the planner's seconds over published runs, and the calibration.

python -m benchmarks.planner.errors              # the table of docs/planning.md
python -m benchmarks.planner.errors FILE         # write it there, between its marks
python -m benchmarks.planner.errors --calibrate  # the efficiencies with the smallest error
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.planning.devices import DEVICES, GIB
from rlhf_ray.planning.lengths import Lengths
from rlhf_ray.planning.roofline import (
    ADAPTED_CHECKPOINTED,
    CALIBRATED,
    CHECKPOINTED,
    EAGER,
    FORWARD,
    UPDATE,
    Efficiencies,
    EngineSpeed,
    Kernels,
    Split,
    decode_seconds,
    pass_seconds,
)
from rlhf_ray.planning.shape import ModelShape, model_shape

_ROWS = Path(__file__).with_name("rows.yaml")
_BEGIN, _END = "<!-- errors -->", "<!-- end of errors -->"
# With so many tokens of a prompt the published rates and seconds of a step agree, in every row.
_PROMPT = 110
# Share of a GPU that the engine has: next to a learner, and alone.
_SHARED, _OWN = 0.6, 0.85
# Compiled code moves half of the elementwise bytes; fp8 doubles the rate of products, and has to
# scale and round what goes into them. Both were fitted to the three measurements of row 37.
_KERNELS = {
    "bfloat16": EAGER,
    "compiled": Kernels(products=1.1, traffic=0.55),
    "fp8": Kernels(products=2.2, traffic=1.45),
}
_SECONDS_OF_A_TURN = 1.0


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A published figure and the planner's.

    Attributes:
        row: number in the survey.
        unit: s, or tokens/s/GPU.
        is_slow: a larger figure is a slower run.
    """

    row: str
    model: str
    what: str
    published: float
    planned: float
    unit: str
    is_held_out: bool
    is_dense: bool

    @property
    def error(self) -> float:
        """Planned seconds over published ones, less 1."""
        ratio = self.planned / self.published
        return (ratio if self.unit == "s" else 1 / ratio) - 1


@functools.cache
def _content() -> Any:
    return yaml.safe_load(_ROWS.read_text(encoding="utf-8"))


def compared_rows(efficiencies: Efficiencies = CALIBRATED) -> list[Compared]:
    """All rows that have what the planner needs."""
    content = _content()
    shapes = {name: _known(values) for name, values in content["models"].items()}
    return [
        *(_rl_row(row, shapes[row["model"]], efficiencies) for row in content["rl"]),
        *(_training_row(row, shapes[row["model"]], efficiencies) for row in content["training"]),
    ]


def _known(values: Mapping[str, Any]) -> ModelShape:
    shape = model_shape(values)
    assert shape is not None, f"{values['model_type']} is a known family"
    return shape


def _rl_row(row: Mapping[str, Any], shape: ModelShape, efficiencies: Efficiencies) -> Compared:
    device = DEVICES[row["device"]]
    lengths = Lengths(prompt=_PROMPT, mean=row["mean"], longest=row["longest"])
    gpus = row["gpus"] // (2 if row["overlaps"] else 1)
    engine_gpus = row["engine"]
    share = _OWN if row["overlaps"] else _SHARED
    room = device.memory_gib * GIB * share * engine_gpus - 2 * shape.weights
    cached = 2 * shape.cache_values * (_PROMPT + lengths.context / 2)
    engine = EngineSpeed(
        shape=shape,
        device=device,
        gpus=engine_gpus,
        at_once=max(1.0, room / cached),
        efficiencies=efficiencies,
    )
    samples = row["samples"] * engine_gpus / gpus
    goes_on = row["overlaps"]
    generating = decode_seconds(engine, lengths, samples=samples, goes_on=goes_on).seconds
    width = row["tensor"] * row["pipeline"]
    tokens = row["samples"] * lengths.sample / gpus
    split = Split(
        tensor=row["tensor"],
        pipeline=row["pipeline"],
        micro_batches=row["batch"] * lengths.sample / row["longest"] / (gpus / width),
    )
    passes = (FORWARD, FORWARD, UPDATE)
    learning = sum(
        pass_seconds(
            shape,
            device,
            each,
            tokens=tokens,
            context=lengths.context,
            split=split,
            efficiencies=efficiencies,
        ).seconds
        for each in passes
    )
    together = max(generating, learning) if row["overlaps"] else generating + learning
    return Compared(
        row=str(row["row"]),
        model=row["model"],
        what=f"RL, {row['gpus']} {row['device']}{', overlapping' if row['overlaps'] else ''}",
        published=row["step_s"],
        planned=together + _SECONDS_OF_A_TURN,
        unit="s",
        is_held_out=row.get("held_out", False),
        is_dense=not shape.experts,
    )


def _training_row(
    row: Mapping[str, Any], shape: ModelShape, efficiencies: Efficiencies
) -> Compared:
    device, tensor = DEVICES[row["device"]], row.get("tensor", 1)
    passes = CHECKPOINTED if row.get("layers_again") else UPDATE
    is_adapter = row.get("adapter", False)
    # Gathered for both passes, gradients summed in float32.
    gathered = (4 if is_adapter else 8) * shape.weights / tensor if row["gpus"] > 1 else 0.0
    seconds = pass_seconds(
        shape,
        device,
        ADAPTED_CHECKPOINTED if is_adapter else passes,
        tokens=1e6,
        context=row["sequence"],
        split=Split(tensor=tensor, gathered_bytes=gathered, nodes=-(-row["gpus"] // 8)),
        micro_batch=row["sequence"],
        kernels=_KERNELS[row.get("products", "bfloat16")],
        efficiencies=efficiencies,
    ).seconds
    what = f"{row['sequence'] // 1024}k, {row['gpus']} {row['device']}"
    extras = [name for name in ("adapter",) if row.get(name)]
    extras += [row["products"]] if "products" in row else []
    return Compared(
        row=str(row["row"]),
        model=row["model"],
        what=", ".join(["training", what, *extras]),
        published=row["rate"],
        planned=1e6 / seconds,
        unit="tokens/s/GPU",
        is_held_out=row.get("held_out", False),
        is_dense=not shape.experts,
    )


def table(rows: list[Compared]) -> str:
    """The rows as a Markdown table, without a final newline."""
    names = ("row", "model", "run", "published", "planned", "error of the time")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        mark = " (held out)" if row.is_held_out else ""
        lines.append(
            f"| {row.row}{mark} | {row.model} | {row.what} | {row.published:,.4g} {row.unit} | "
            f"{row.planned:,.4g} | {row.error:+.0%} |"
        )
    return "\n".join(lines)


def calibrated() -> Efficiencies:
    """The two efficiencies with the smallest mean error over dense rows that are not held out."""
    shares = [share / 100 for share in range(20, 91)]
    by_gemm = _best([Efficiencies(decode=CALIBRATED.decode, gemm=share) for share in shares])
    by_decode = _best([Efficiencies(decode=share, gemm=by_gemm.gemm) for share in shares])
    return _best([Efficiencies(decode=by_decode.decode, gemm=share) for share in shares])


def _best(candidates: list[Efficiencies]) -> Efficiencies:
    return min(candidates, key=mean_error)


def mean_error(efficiencies: Efficiencies) -> float:
    """The mean absolute logarithm of planned over published, of the rows that calibrate."""
    errors = list(_log_errors(compared_rows(efficiencies)))
    return sum(errors) / len(errors)


def _log_errors(rows: list[Compared]) -> Iterator[float]:
    for row in rows:
        if row.is_dense and not row.is_held_out:
            yield abs(math.log(1 + row.error))


def written(page: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{table(compared_rows())}\n{_END}{after}"


def main(arguments: list[str]) -> None:
    """Print the table or the efficiencies, or write the table to a page."""
    if arguments == ["--calibrate"]:
        print(calibrated())
    elif arguments:
        page = Path(arguments[0])
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(compared_rows()))


if __name__ == "__main__":
    main(sys.argv[1:])
