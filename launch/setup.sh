#!/usr/bin/env bash
# Makes the environment in .venv, and says nothing when it is already right.
#
#   launch/setup.sh [EXTRA ...]     extras besides `cpu` or `gpu`: dev, bench, smollm2
#
# RLHF_RAY_DEVICE=cpu|gpu   which engine to install (default: gpu where nvidia-smi lists one)
# RLHF_RAY_VENV=DIR         where (default: .venv beside this folder)
# RLHF_RAY_PYTHON=3.11      which Python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${RLHF_RAY_VENV:-.venv}"
python_version="${RLHF_RAY_PYTHON:-3.11}"
device="${RLHF_RAY_DEVICE:-}"
if [ -z "$device" ]; then
    device=cpu
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
        device=gpu
    fi
fi
extras="$device"
for extra in "$@"; do extras="$extras,$extra"; done

# One stamp per set of extras: the same request on the same files is a no-op.
wanted="$(cat pyproject.toml launch/setup.sh | sha256sum | cut -c1-16) $python_version"
stamp="$venv/.rlhf_ray-$extras"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

if command -v uv >/dev/null 2>&1; then
    uv=(uv)
else
    # A folder of its own, so that no system Python is changed.
    tools="${XDG_CACHE_HOME:-$HOME/.cache}/rlhf_ray/uv"
    if [ ! -x "$tools/bin/uv" ]; then
        echo "setup: installing uv into $tools" >&2
        python3 -m pip install --quiet --target "$tools" uv
    fi
    uv=("$tools/bin/uv")
fi

if [ "$device" = cpu ]; then
    # uv does not read pip's find-links. A machine that keeps the CPU build of
    # torch there is served from it; every other one from PyTorch's own index.
    if [ -n "${PIP_FIND_LINKS:-}" ]; then
        export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"
    else
        export UV_TORCH_BACKEND="${UV_TORCH_BACKEND:-cpu}"
    fi
fi
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"

[ -x "$venv/bin/python" ] || "${uv[@]}" venv --quiet --python "$python_version" "$venv"
echo "setup: installing rlhf_ray[$extras] into $venv" >&2
"${uv[@]}" pip install --quiet --python "$venv/bin/python" -e ".[$extras]"
echo "$wanted" >"$stamp"
