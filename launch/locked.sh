# shellcheck shell=bash
# Sourced by setup.sh and setup_compress.sh. Sets `locked`, an array of options for uv, from `lock`,
# the name of a file in launch/locks, and `python_version`.
#
# RLHF_RAY_LOCK=no     installs the newest versions that pyproject.toml allows instead

locked=()
# shellcheck disable=SC2154  # set by the script that sources this file
if [ "${RLHF_RAY_LOCK:-yes}" = no ]; then
    echo "setup: RLHF_RAY_LOCK=no: versions and hashes of launch/locks do not hold" >&2
elif [ "$(uname -sm)" != "Linux x86_64" ] || [ "$python_version" != 3.11 ]; then
    echo "setup: launch/locks is for Linux on x86-64 with Python 3.11, and this is $(uname -sm)" \
        "with $python_version: versions are those that pyproject.toml allows, without hashes" >&2
else
    # A package whose file has another hash than the lock is refused.
    # shellcheck disable=SC2034
    locked=(--constraints "launch/locks/$lock.txt" --verify-hashes)
fi
