#!/usr/bin/env bash
# Makes the environment of stage=compress in .venv-compress, and says nothing when it is right.
# LLM Compressor wants other versions of transformers and compressed-tensors than vLLM does.
#
# RLHF_RAY_COMPRESS_VENV=DIR   where (default: .venv-compress beside this folder)
# RLHF_RAY_DEVICE, RLHF_RAY_PYTHON   as in setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${RLHF_RAY_COMPRESS_VENV:-.venv-compress}"
python_version="${RLHF_RAY_PYTHON:-3.11}"
compressor="llmcompressor==0.14.0.1"
# Sets `uv` and where torch comes from.
# shellcheck source-path=SCRIPTDIR source=uv_env.sh
source launch/uv_env.sh

wanted="$(cat pyproject.toml launch/setup_compress.sh launch/uv_env.sh launch/locks/compress.txt |
    sha256sum | cut -c1-16)"
wanted="$wanted $python_version"
stamp="$venv/.rlhf_ray-compress"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

[ -x "$venv/bin/python" ] || "${uv[@]}" venv --quiet --python "$python_version" "$venv"
# Sets `locked`, as in setup.sh.
lock="compress"
# shellcheck source-path=SCRIPTDIR source=locked.sh
source launch/locked.sh
echo "setup: installing $compressor into $venv" >&2
# The overrides of pyproject.toml hold here too, because uv reads them from this folder.
torch="$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
"${uv[@]}" pip install --quiet --compile-bytecode --python "$venv/bin/python" \
    "${locked[@]}" "$torch" "$compressor"
echo "$wanted" >"$stamp"
