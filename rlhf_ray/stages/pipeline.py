"""stage=pipeline: several stages as one run; each goes on from what an earlier one wrote."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.config.errors import ConfigError, GatheredProblems, RequestError, RunFailed
from rlhf_ray.config.groups.pipeline import PipelineConfig, read_report, read_stages
from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.load import load_config, load_values, rates_by_default, to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.driver.kept_rates import with_kept_rates
from rlhf_ray.observe.facts import duration
from rlhf_ray.observe.figures import figure_problem, find_figure
from rlhf_ray.observe.run_report import plain_table, write_files
from rlhf_ray.stages.request_checks import check_part
from rlhf_ray.stages.stage import Stage
from rlhf_ray.stages.start import start_stage
from rlhf_ray.stages.steps.ahead import check_ahead, check_sizes
from rlhf_ray.stages.steps.shown import difference
from rlhf_ray.stages.table import load_stage

_RECORD = "progress.json"
# Where a stage leaves its numbers.
_RESULTS = ("summary.json", "evaluation.json", "compression.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """A stage with its configuration, and what a result of its has to come from.

    Attributes:
        told: the request of this stage.
        key: of what this stage and all before it were told; a result with another key is old.
    """

    name: str
    told: Mapping[str, Any]
    config: Config
    key: str


def run(config: Config) -> int:
    """Run the stages that are not finished yet, in order.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the configuration of a stage is wrong; no stage has been started then. Or a
            stage found its input wrong.
        RunFailed: a stage failed.
    """
    steps = read_steps(config)
    record = _read_record(config)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    waiting = [step for step in steps if not record.is_finished(step)]
    log = output / "error.log"
    with _one_cluster(config, error_log=log) if waiting else nullcontext():
        for number, step in enumerate(steps, start=1):
            title = f"{step.name} ({number} of {len(steps)})"
            if record.is_finished(step):
                print(f"== {title}: finished before", flush=True)
            else:
                print(f"== {title}", flush=True)
                _run_step(step, record)
    seconds = {step.name: record.seconds_of(step) for step in steps}
    print(_report(config.pipeline, Path(config.output_dir), steps, seconds), flush=True)
    return 0


def read_steps(config: Config) -> tuple[_Step, ...]:
    """Every stage with its configuration, checked.

    Raises:
        ConfigError: lists what is wrong with any of them.
    """
    steps: list[_Step] = []
    problems: list[str] = []
    key = ""
    common = {"seed": config.seed, "observe.progress": config.observe.progress}
    for stage in read_stages(config.pipeline, config.output_dir):
        told = {**common, "output_dir": str(Path(config.output_dir) / stage.name), **stage.values}
        text = json.dumps([key, told], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            own = load_values(told)
            steps.append(_Step(name=stage.name, told=told, config=own, key=key))
        except ConfigError as error:
            problems.append(f"pipeline.stages.{stage.name}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(steps)


def waiting_steps(config: Config) -> list[tuple[_Step, list[Path]]]:
    """Every stage that is not finished, with the folders of the unfinished ones before it.

    Raises:
        ConfigError: see `read_steps`.
        RequestError: the record of the stages cannot be read.
    """
    record = _read_record(config)
    waiting = [step for step in read_steps(config) if not record.is_finished(step)]
    folders = [Path(step.config.output_dir) for step in waiting]
    return [(step, folders[:number]) for number, step in enumerate(waiting)]


def _describe(config: Config) -> str:
    """The stages in order: the folder of each, and what it has other than its recipe."""
    steps = read_steps(config)
    recipes = {step.name: step.config for step in _of_recipe(config)}
    width = max(len(step.name) for step in steps)
    lines = []
    for step in steps:
        lines.append(
            f"{step.name:<{width}}  stage={step.config.stage.name} {step.config.output_dir}"
        )
        lines.append(f"{'':<{width}}  {difference(step.config, recipes.get(step.name))}")
    return "# Stages\n" + "\n".join(lines)


def _of_recipe(config: Config) -> tuple[_Step, ...]:
    """The stages as the chosen recipe has them; none where the recipe is a file of one's own."""
    if config.recipe not in group_choices()["recipe"]:
        return ()
    recipe = load_config([f"recipe={config.recipe}"])
    recipe.output_dir, recipe.seed = config.output_dir, config.seed
    recipe.observe.progress = config.observe.progress
    return read_steps(recipe) if recipe.stage.name == "pipeline" else ()


def _run_step(step: _Step, record: _Record) -> None:
    # A folder of another request has nothing to go on from. That holds for this start alone: the
    # stage's own config.yaml says resume=auto, as one that is started from it goes on.
    replaces = not record.was_started(step)
    config = step.config
    config.resume = "auto"
    if not replaces:
        config = with_kept_rates(config, lambda: rates_by_default(step.told), print)
    record.start(step)
    started = time.monotonic()
    try:
        stage = load_stage(step.config.stage.name)
        start_stage(stage, config, replaces=replaces)
    except RequestError as error:
        raise RequestError(f"pipeline stage {step.name}: {error}") from error
    except RunFailed as error:
        raise RunFailed(f"pipeline stage {step.name}: {error}") from error
    record.finish(step, seconds=time.monotonic() - started)


@contextmanager
def _one_cluster(config: Config, *, error_log: Path) -> Iterator[None]:
    """One local cluster for all stages, if any of them has workers."""
    # Seconds of import, after the configuration of every stage was found right.
    from rlhf_ray.cluster.runtime.session import connected

    with connected(
        dashboard=config.observe.dashboard, deadlines=config.deadlines, error_log=error_log
    ):
        yield


def _read_record(config: Config) -> _Record:
    return _Record(Path(config.output_dir) / _RECORD, is_kept=config.resume == "auto")


class _Record:
    """The record of started and finished stages, in a file that is written atomically.

    Args:
        is_kept: go on from what the file says; begin a new one otherwise.
    """

    def __init__(self, path: Path, *, is_kept: bool) -> None:
        self._path = path
        self._stages: dict[str, dict[str, Any]] = {}
        if is_kept and path.exists():
            try:
                self._stages = _entries(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, RecursionError) as error:
                raise RequestError(
                    f"{path} cannot be read ({error}): it says which stages are finished; delete "
                    f"it or set resume=never to run all of them again"
                ) from error

    def was_started(self, step: _Step) -> bool:
        return self._entry(step).get("key") == step.key

    def is_finished(self, step: _Step) -> bool:
        return self.was_started(step) and "seconds" in self._entry(step)

    def seconds_of(self, step: _Step) -> float:
        return float(self._entry(step)["seconds"])

    def start(self, step: _Step) -> None:
        self._write(step, {"key": step.key})

    def finish(self, step: _Step, *, seconds: float) -> None:
        self._write(step, {"key": step.key, "seconds": round(seconds, 1)})

    def _entry(self, step: _Step) -> dict[str, Any]:
        return self._stages.get(step.name, {})

    def _write(self, step: _Step, entry: dict[str, Any]) -> None:
        self._stages[step.name] = entry
        write_atomically(self._path, json.dumps({"stages": self._stages}, indent=2) + "\n")


def _entries(content: Any) -> dict[str, dict[str, Any]]:
    """The stages of a record by name.

    Raises:
        ValueError: it is none.
    """
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, dict) or not all(map(_is_entry, stages.values())):
        raise ValueError("it holds no stages with their keys and seconds")
    return stages


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("seconds", 0.0), int | float)


def _report(
    pipeline: PipelineConfig, output: Path, steps: tuple[_Step, ...], seconds: Mapping[str, float]
) -> str:
    """Write summary.json and summary.txt; returns the table."""
    figures = {
        figure.name: _figure(output / figure.stage, figure.path) for figure in read_report(pipeline)
    }
    rows = [(name.replace("_", " "), f"{value:.4g}") for name, value in figures.items()]
    rows += [(f"  {name}", duration(value)) for name, value in seconds.items()]
    total = sum(seconds.values())
    table = plain_table(
        [*rows, ("time, all stages", duration(total))], result=steps[-1].config.output_dir
    )
    values = {**figures, "seconds": dict(seconds), "total_s": total}
    write_files(output, values, table)
    return table


def _figure(folder: Path, path: tuple[str, ...]) -> float:
    file = next((folder / name for name in _RESULTS if (folder / name).is_file()), None)
    if file is None:
        raise RunFailed(f"{folder} has no numbers, which pipeline.report asks for")
    try:
        return find_figure(json.loads(file.read_text(encoding="utf-8")), path)
    except KeyError as error:
        raise RunFailed(
            f"{file} has no number at {'.'.join(path)}, which pipeline.report asks for: "
            f"{error.args[0]}"
        ) from error


def _check(config: Config) -> None:
    """Check the report and every stage that is not finished.

    What an earlier one of them makes is not looked at.

    Raises:
        RequestError: lists the figures and the stages, and all that is missing or wrong there.
    """
    parts = {step.name: step.config for step in read_steps(config)}
    waiting = waiting_steps(config)
    problems = GatheredProblems()
    for figure in read_report(config.pipeline):
        with problems.gathered():
            if problem := figure_problem(parts[figure.stage], figure.path):
                text = config.pipeline.report[figure.name]
                raise RequestError(f"pipeline.report.{figure.name}={text}: {problem}")
    for step, folders in waiting:
        with problems.gathered(f"pipeline.stages.{step.name}: "):
            check_part(step.config, made_in=folders)
    with problems.gathered():
        check_sizes([(step.name, step.config) for step, _ in waiting])
    problems.refuse()


def _look_ahead(config: Config) -> None:
    check_ahead([(step.name, step.config) for step, _ in waiting_steps(config)])


STAGE = Stage(name="pipeline", describe=_describe, run=run, check=_check, look_ahead=_look_ahead)
