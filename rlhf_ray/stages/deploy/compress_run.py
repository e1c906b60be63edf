"""Quantised and pruned forms of a model: made, tried in the engine, and evaluated."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.compression.compression_report import ORIGINAL, Form, describe, table
from rlhf_ray.compression.request import Compressed, compress
from rlhf_ray.compression.run_command import run_command
from rlhf_ray.config.convert import show_problems
from rlhf_ray.config.errors import ConfigError, RequestError
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.rules.table import cross_field_problems
from rlhf_ray.config.run import Config, StageConfig
from rlhf_ray.data.prompts.load import load_prompts
from rlhf_ray.generation.speed import Speed, read_result, write_request
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.stages.evaluate import run as evaluate
from rlhf_ray.stages.evaluate.inputs import load_eval_demonstrations
from rlhf_ray.stages.inputs import check_models

# Answered all at once when the speed is measured.
_PROMPTS_OF_SPEED = 32


def run(config: Config) -> int:
    """Make every form, try each in the engine, and evaluate those that it runs.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the inputs are wrong; nothing has been made then.
        RunFailed: it failed while running; a method that fails is a line of the report.
    """
    _check(config)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    path = resolve_model_path(config.model.path, seed=config.seed, report=_say)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
    tokenizer = load_tokenizer(config.model)
    prompts = [p.token_ids for p in load_prompts(config.data, tokenizer, seed=config.seed).prompts]
    calibration = prompts[: config.compress.calibration_prompts]
    _say(f"compressing {path}: {', '.join(config.compress.methods)}; {len(calibration)} prompts")
    perplexity, made = compress(
        path,
        config.compress,
        calibration=calibration,
        demonstrations=load_eval_demonstrations(config.examples, tokenizer, seed=config.seed),
        output=output,
        seed=config.seed,
    )
    forms = [
        Form(compressed=form, speed=_speed(config, form, prompts[:_PROMPTS_OF_SPEED]))
        for form in [_unchanged(path, perplexity), *made]
    ]
    report = describe(forms, _evaluate(config, [form for form in forms if form.runs]))
    shown = table(report)
    write_atomically(
        output / "compression.json", json.dumps(report, indent=2, allow_nan=False) + "\n"
    )
    write_atomically(output / "table.md", shown + "\n")
    print(f"\n{shown}\n\nResult: {output / 'compression.json'}", flush=True)
    return 0


def _check(config: Config) -> None:
    if problems := cross_field_problems(_of_evaluation(config, {ORIGINAL: config.model.path})):
        raise ConfigError(show_problems(problems))
    check_models(config)
    if not Path(config.compress.python).is_file():
        raise RequestError(
            f"compress.python is {config.compress.python!r}: there is no such file. It is the "
            f"Python of the environment with LLM Compressor, which launch/setup_compress.sh makes "
            f"in .venv-compress"
        )


def _of_evaluation(config: Config, models: dict[str, str]) -> Config:
    """stage=evaluate on the original and other forms of it."""
    return dataclasses.replace(
        config,
        stage=StageConfig(name="evaluate"),
        evaluation=dataclasses.replace(config.evaluation, models=models, baseline=ORIGINAL),
        output_dir=str(Path(config.output_dir) / "evaluation"),
    )


def _unchanged(path: str, perplexity: float | None) -> Compressed:
    return Compressed(
        name=ORIGINAL, path=Path(path), perplexity=perplexity, zero_share=0.0, seconds=0.0, error=""
    )


def _speed(config: Config, form: Compressed, prompts: Sequence[Sequence[int]]) -> Speed | None:
    if form.path is None:
        _say(f"{form.name}: failed: {form.error}")
        return None
    output = Path(config.output_dir)
    files = output / "speed_request.json", output / "speed_result.json"
    write_request(
        files[0],
        config.generation,
        dataclasses.replace(config.model, path=str(form.path)),
        prompts,
        max_sequence_tokens=config.max_sequence_tokens,
    )
    files[1].unlink(missing_ok=True)
    run_command(
        [sys.executable, "-m", "rlhf_ray.generation.speed", *map(str, files)],
        log=output / "logs" / f"engine_{form.name}.log",
        what=f"the engine with {form.name}",
        timeout_s=config.compress.timeout_s,
    )
    speed = read_result(files[1])
    for file in files:
        file.unlink()
    fast = f"{speed.tokens_per_s:.4g} tokens/s" if speed.tokens_per_s else f"no: {speed.error}"
    _say(f"{form.name}: made in {form.seconds:g} s; in the engine: {fast}")
    return speed


def _evaluate(config: Config, forms: Sequence[Form]) -> dict[str, Any] | None:
    """evaluation.json of those that the engine runs; None where it does not run the original."""
    models = {form.compressed.name: str(form.compressed.path) for form in forms}
    if ORIGINAL not in models:
        return None
    evaluation = _of_evaluation(config, models)
    evaluate.run(evaluation)
    return json.loads((Path(evaluation.output_dir) / "evaluation.json").read_text(encoding="utf-8"))


def _say(line: str) -> None:
    print(line, flush=True)
