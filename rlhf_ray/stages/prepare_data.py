"""stage=prepare_data: sources in, cleaned and blended sets out. No cluster, no model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.prepare_sources import PreparedSource, read_source, read_split
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.data.prepare.cleaning.lengths import TokenLimit
from rlhf_ray.data.prepare.cleaning.pipeline import make_cleaning
from rlhf_ray.data.prepare.prepare import Preparation
from rlhf_ray.data.prepare.reading import check_rows, check_source, describe_source
from rlhf_ray.data.prepare.report import report_of, report_tables
from rlhf_ray.data.prepare.work_folder import check_output, work_folder
from rlhf_ray.data.rows import BadCell
from rlhf_ray.data.sources.prepared import REPORT
from rlhf_ray.data.tokens.encoding import encode, most_characters
from rlhf_ray.stages.request_checks import check_request
from rlhf_ray.stages.stage import FolderUse, Stage

_SCRATCH = "scratch.sqlite"


def run(config: Config) -> int:
    """Prepare `prepare.sources`; returns the exit status, 0.

    Raises:
        RequestError: an input is missing or wrong; nothing has been written then.
    """
    prepare, output = config.prepare, Path(config.output_dir)
    sources = _read_all("prepare.sources", prepare.sources)
    evaluation = _read_all("prepare.evaluation_sets", prepare.evaluation_sets)
    check_output(output)
    for source in (*sources, *evaluation):
        check_source(source)
    for source in evaluation:
        check_rows(source, on_bad_row=prepare.on_bad_row)
    report = _reporter(config.observe.progress)
    for source in (*sources, *evaluation):
        for line in describe_source(source, unchecked=False):
            report(line)
    report(f"checking {len(sources)} sources")
    token_limit = None
    if prepare.max_tokens is not None:
        # Seconds of import that only a limit in tokens needs.
        from rlhf_ray.models.builtin import resolve_model_path

        path = resolve_model_path(config.model.path, seed=config.seed, report=report)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
        token_limit = _token_limit(config.model, prepare.max_tokens)
    cleaning = make_cleaning(prepare, evaluation, token_limit)
    expected = {
        source.name: check_rows(source, on_bad_row=prepare.on_bad_row) for source in sources
    }
    preparation = Preparation(
        prepare=prepare,
        sources=sources,
        split=read_split("prepare.split", prepare.split),
        cleaning=cleaning,
        expected=expected,
        seed=config.seed,
        report=report,
    )
    with work_folder(output) as folder:
        scratch = folder / _SCRATCH
        result = preparation.run(folder, scratch)
        scratch.unlink()
        values = report_of(result, sources, prepare, seed=config.seed)
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    print(f"{report_tables(values)}\nResult: {output}", flush=True)
    return 0


def _describe(config: Config) -> str:
    """The sources and what becomes of them, without reading anything."""
    lines = [
        f"{source.name}: {source.path}, {source.layout or 'columns'} -> {source.kind}"
        for source in _read_all("prepare.sources", config.prepare.sources)
    ]
    return "# Sources\n" + "\n".join(lines)


def _read_all(group: str, entries: Mapping[str, Any]) -> tuple[PreparedSource, ...]:
    return tuple(read_source(name, entry, group=group) for name, entry in entries.items())


def _token_limit(model: ModelConfig, most: int) -> TokenLimit:
    from rlhf_ray.models.loading import load_tokenizer

    tokenizer = load_tokenizer(model)

    def count(text: str) -> int | BadCell:
        (ids,) = encode([text], tokenizer, add_special_tokens=False)
        return ids if isinstance(ids, BadCell) else len(ids)

    return TokenLimit(count, most=most, max_characters=most_characters(tokenizer, most))


def _reporter(progress: str) -> Callable[[str], None]:
    def report(message: str) -> None:
        if progress != "off":
            print(message, flush=True)

    return report


STAGE = Stage(
    name="prepare_data", describe=_describe, run=run, folder=FolderUse.REPLACED, check=check_request
)
