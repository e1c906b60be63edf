"""vLLM's OpenAI server as a child process that ends together with its parent.

    python -m rlhf_ray.generation.server.openai_server ARGUMENTS.json

Its standard input is a pipe that is never written to: it closes when the parent ends.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.generation.engine_arguments import refuse_unknown
from rlhf_ray.generation.environment import engine_environment
from rlhf_ray.generation.parent_watch import end_group_with_stdin
from rlhf_ray.generation.requirements import check_vllm

EXIT_WRONG_REQUEST = 2
# Start of the log line that says why the arguments are refused; `serving/replica.py` reads it.
REFUSAL = "refused: "


def server_command(arguments: Path) -> list[str]:
    """Command line of the server with the arguments in a file; see `server_arguments`."""
    return [sys.executable, "-m", "rlhf_ray.generation.server.openai_server", str(arguments)]


def server_environment(
    generation: GenerationConfig, *, replica: int, scratch: Path, visible_gpus: str | None
) -> dict[str, str]:
    """Environment variables of one server, added to those of this process.

    Args:
        scratch: folder for the sockets between its processes.
        visible_gpus: `CUDA_VISIBLE_DEVICES` of this process; each replica takes its share of them.
    """
    variables = engine_environment(
        generation, engine_index=replica, cpu_ids=sorted(os.sched_getaffinity(0))
    )
    variables["VLLM_RPC_BASE_PATH"] = str(scratch)
    # Counted and not raised: what one text makes of an engine must not end the answers to others.
    variables["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"
    ranks = generation.tensor_parallel_size
    if generation.num_gpus > 0:
        first = int(replica * ranks * generation.num_gpus)
        wanted = range(first, first + ranks)
        names = visible_gpus.split(",") if visible_gpus else None
        if names is not None and wanted[-1] >= len(names):
            raise RequestError(
                f"serve.replicas: replica {replica} needs {ranks} GPUs more than this machine "
                f"shows (CUDA_VISIBLE_DEVICES={visible_gpus}); lower serve.replicas or "
                f"generation.num_gpus"
            )
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(
            names[gpu] if names is not None else str(gpu) for gpu in wanted
        )
    return variables


def main() -> int:
    """Serve until SIGTERM; returns the exit status."""
    end_group_with_stdin()
    # Here: the process that names this command line needs no torch.
    from rlhf_ray.models.checks.finite_files import check_weight_files

    arguments = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        check_vllm(serves=True)
        check_weight_files(arguments["model"])
        _serve(with_turn_ends(with_template_text(arguments)))
    except RequestError as error:
        print(f"{REFUSAL}{error}", file=sys.stderr, flush=True)
        return EXIT_WRONG_REQUEST
    return 0


def with_template_text(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with the text of a chat template that is named: vLLM knows files and texts.

    Raises:
        RequestError: the tokenizer has no template of that name.
    """
    chosen = arguments.get("chat_template")
    if chosen is None or any(sign in chosen for sign in "{}\n") or Path(chosen).is_file():
        return dict(arguments)
    from rlhf_ray.models.saving.generation_ends import engine_tokenizer

    tokenizer = engine_tokenizer(
        arguments["tokenizer"],
        trust_remote_code=bool(arguments.get("trust_remote_code")),
        chat_template=chosen,
    )
    return {**arguments, "chat_template": tokenizer.chat_template}


def with_turn_ends(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with generation settings that name the end of a turn in the chat template.

    The settings of a model without instruction tuning, or of one that gets another template here,
    may not name it, so that no answer of a chat would end. vLLM reads more ends from a folder only.
    """
    if "generation_config" in arguments or "uds" not in arguments:
        return dict(arguments)
    from rlhf_ray.models.saving.generation_ends import (
        engine_tokenizer,
        missing_ends,
        write_served_settings,
    )

    model = ModelConfig(
        path=arguments["model"], trust_remote_code=bool(arguments.get("trust_remote_code"))
    )
    tokenizer = engine_tokenizer(
        arguments["tokenizer"],
        trust_remote_code=model.trust_remote_code,
        chat_template=arguments.get("chat_template"),
    )
    ends = missing_ends(model, tokenizer)
    if not ends:
        return dict(arguments)
    names = ", ".join(repr(tokenizer.decode([end])) for end in ends)
    print(f"answers also end at {names}, with which the chat template ends turns", flush=True)
    folder = Path(arguments["uds"]).with_suffix(".generation")
    write_served_settings(model, ends, folder)
    return {**arguments, "generation_config": str(folder)}


def _serve(arguments: Mapping[str, Any]) -> None:
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    assert namespace is not None, "it has no subcommands"
    refuse_unknown(arguments, list(vars(namespace)))
    for name, value in arguments.items():
        setattr(namespace, name, value)
    validate_parsed_serve_args(namespace)
    uvloop.run(run_server(namespace))


if __name__ == "__main__":
    sys.exit(main())
