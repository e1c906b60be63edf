# shellcheck shell=bash
# Sourced by whatever installs this project (setup.sh, the wheel's test, cluster nodes).
# Sets `device` (cpu or gpu) and `uv` (an array: the command), and exports where the
# matching build of torch comes from. Change it here and nowhere else.

device="${RLHF_RAY_DEVICE:-}"
if [ -z "$device" ]; then
    device=cpu
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
        device=gpu
    fi
fi
case "$device" in
cpu | gpu) ;;
*)
    echo "RLHF_RAY_DEVICE is '$device'; it can be cpu or gpu" >&2
    exit 2
    ;;
esac

if command -v uv >/dev/null 2>&1; then
    uv=(uv)
else
    # A folder of its own, so that no system Python is changed.
    tools="${XDG_CACHE_HOME:-$HOME/.cache}/rlhf_ray/uv"
    if [ ! -x "$tools/bin/uv" ]; then
        echo "setup: installing uv into $tools" >&2
        python3 -m pip install --quiet --target "$tools" uv
    fi
    # shellcheck disable=SC2034  # read by the script that sources this file
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
