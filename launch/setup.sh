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
# Sets `device`, `uv` and where torch comes from.
# shellcheck source-path=SCRIPTDIR source=uv_env.sh
source launch/uv_env.sh

# One stamp per extra: a request whose every extra was installed from these
# same files is a no-op, whichever other extras came with it then.
wanted="$(cat pyproject.toml launch/setup.sh launch/uv_env.sh launch/locks/"$device".txt |
    sha256sum | cut -c1-16)"
wanted="$wanted $python_version"
extras=("$device" "$@")
current=yes
for extra in "${extras[@]}"; do
    stamp="$venv/.rlhf_ray-$extra"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] || current=no
done
[ "$current" = no ] || exit 0

[ -x "$venv/bin/python" ] || "${uv[@]}" venv --quiet --python "$python_version" "$venv"
joined="$(IFS=, && echo "${extras[*]}")"
# Bytecode at once: a run starts about ten processes that import the same libraries, and
# on machines where Python may not write it, every one of them would compile them anew.
install=("${uv[@]}" pip install --quiet --compile-bytecode --python "$venv/bin/python")
# Sets `locked`: the versions and hashes to install, where this machine is of the locked kind.
lock="$device"
# shellcheck source-path=SCRIPTDIR source=locked.sh
source launch/locked.sh
install+=("${locked[@]}")
echo "setup: installing rlhf_ray[$joined] into $venv" >&2
if [ "$device" = gpu ]; then
    # flash-attn imports torch while it is built, so torch goes in first and the
    # build sees this environment.
    torch="$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
    "${install[@]}" "$torch" ninja packaging psutil setuptools wheel
    install+=(--no-build-isolation-package flash-attn)
fi
"${install[@]}" -e ".[$joined]"
for extra in "${extras[@]}"; do echo "$wanted" >"$venv/.rlhf_ray-$extra"; done
