"""Quantised and pruned forms of a model: made, tried in the engine, and evaluated."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.compression.compression_report import ORIGINAL, Form, describe, table
from rlhf_ray.compression.request import Compressed, compress
from rlhf_ray.compression.run_command import run_command
from rlhf_ray.config.convert import show_problems
from rlhf_ray.config.errors import ConfigError, RequestError
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.rules.table import cross_field_problems
from rlhf_ray.config.run import Config, StageConfig
from rlhf_ray.data.prompts.load import load_prompts
from rlhf_ray.data.tokens.turn_ends import engine_ends
from rlhf_ray.generation.requirements import check_head_size
from rlhf_ray.generation.speed import Speed, read_result, write_request
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.checks.chat_template import check_chat_template
from rlhf_ray.models.checks.finite_files import check_weight_files
from rlhf_ray.models.checks.whole_model import Use, check_weights
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.saving.generation_ends import add_ends
from rlhf_ray.stages.evaluate.inputs import load_eval_demonstrations
from rlhf_ray.stages.evaluate.models import demonstrations_within
from rlhf_ray.stages.evaluate.stage import STAGE as EVALUATE
from rlhf_ray.stages.inputs import check_models
from rlhf_ray.stages.positions import check_sequences
from rlhf_ray.stages.start import start_stage
from rlhf_ray.stages.template_time import with_template_time

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    if problems := cross_field_problems(_of_evaluation(config, {ORIGINAL: config.model.path})):
        raise ConfigError(show_problems(problems))
    check_models(config)
    config = with_template_time(config)
    _check_python(config.compress.python)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    path = resolve_model_path(config.model.path, seed=config.seed, report=_say)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
    tokenizer = _checked_tokenizer(config)
    examples = demonstrations_within({ORIGINAL: config.model}, config.examples, _say)
    prompts = [p.token_ids for p in load_prompts(config.data, tokenizer, seed=config.seed).prompts]
    calibration = prompts[: config.compress.calibration_prompts]
    _say(f"compressing {path}: {', '.join(config.compress.methods)}; {len(calibration)} prompts")
    perplexity, made = compress(
        path,
        config.compress,
        calibration=calibration,
        demonstrations=load_eval_demonstrations(examples, tokenizer, seed=config.seed),
        output=output,
        seed=config.seed,
    )
    name_ends([form.path for form in made], tokenizer)
    trial = _SpeedTrial(
        generation=config.generation,
        model=config.model,
        prompts=prompts[:_PROMPTS_OF_SPEED],
        max_sequence_tokens=config.max_sequence_tokens,
        output=output,
        timeout_s=config.compress.timeout_s,
    )
    forms = [
        Form(compressed=form, speed=trial.measure(form))
        for form in [_unchanged(path, perplexity), *made]
    ]
    evaluation = None
    models = {form.compressed.name: str(form.compressed.path) for form in forms if form.runs}
    if ORIGINAL in models:  # Without it there is nothing to compare the other forms with.
        start_stage(EVALUATE, _of_evaluation(config, models))
        found = output / "evaluation" / "evaluation.json"
        evaluation = json.loads(found.read_text(encoding="utf-8"))
    report = describe(forms, evaluation)
    shown = table(report)
    write_atomically(
        output / "compression.json", json.dumps(report, indent=2, allow_nan=False) + "\n"
    )
    write_atomically(output / "table.md", shown + "\n")
    print(f"\n{shown}\n\nResult: {output / 'compression.json'}", flush=True)
    return 0


def name_ends(folders: Sequence[Path | None], tokenizer: PreTrainedTokenizerBase) -> None:
    """Name the ends of a turn of the chosen template, which other engines do not read, in folders.

    Args:
        folders: of the forms; None for one that could not be made.
    """
    for folder in filter(None, folders):
        add_ends(folder, engine_ends(tokenizer))


def _checked_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer of a model whose files, sizes and lengths were checked.

    Raises:
        RequestError: it could not be compressed, or no engine could run it.
    """
    model = config.model
    tokenizer = load_tokenizer(model)
    if config.data.apply_chat_template:
        check_chat_template(tokenizer, model.tokenizer_path or model.path)
    check_weights(model, Use.POLICY)
    check_weight_files(model.path)
    check_head_size(model, config.generation)
    check_sequences(config)
    return tokenizer


def _check_python(python: str) -> None:
    if not Path(python).is_file():
        raise RequestError(
            f"compress.python is {python!r}: there is no such file. It is the Python of the "
            f"environment with LLM Compressor, which launch/setup_compress.sh makes in "
            f".venv-compress"
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _SpeedTrial:
    """Every form answers the same prompts in its own engine process."""

    generation: GenerationConfig
    model: ModelConfig
    prompts: Sequence[Sequence[int]]
    max_sequence_tokens: int
    output: Path
    timeout_s: float

    def measure(self, form: Compressed) -> Speed | None:
        """The speed of a form; None where it could not be made."""
        if form.path is None:
            _say(f"{form.name}: failed: {form.error}")
            return None
        files = self.output / "speed_request.json", self.output / "speed_result.json"
        write_request(
            files[0],
            self.generation,
            dataclasses.replace(self.model, path=str(form.path)),
            self.prompts,
            max_sequence_tokens=self.max_sequence_tokens,
        )
        files[1].unlink(missing_ok=True)
        run_command(
            [sys.executable, "-m", "rlhf_ray.generation.speed", *map(str, files)],
            log=self.output / "logs" / f"engine_{form.name}.log",
            what=f"the engine with {form.name}",
            timeout_s=self.timeout_s,
        )
        speed = read_result(files[1])
        for file in files:
            file.unlink()
        fast = f"{speed.tokens_per_s:.4g} tokens/s" if speed.tokens_per_s else f"no: {speed.error}"
        _say(f"{form.name}: made in {form.seconds:g} s; in the engine: {fast}")
        return speed


def _say(line: str) -> None:
    print(line, flush=True)
