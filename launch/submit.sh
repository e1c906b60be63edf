#!/usr/bin/env bash
# Submits a run to a Ray cluster as a job, with the working tree as it is now.
#
#   launch/submit.sh [RAY_JOB_OPTION ... --] KEY=VALUE ...
#   launch/submit.sh recipe=demo num_steps=10
#   launch/submit.sh --no-wait -- recipe=demo output_dir=/shared/runs/demo
#
# Where: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else http://127.0.0.1:8265
#        (`ray dashboard launch/cluster.yaml` forwards that port from a cloud cluster).
# Token: RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token. It must
#        be the one that the cluster was started with. RAY_AUTH_MODE=disabled sends none.
#
# The configuration is checked here first, where the package is installed; models and data are
# looked at by the job. A cluster that does not answer is said at once.
#
# Exit status: that of `ray job submit`; 2 if the request was wrong or no cluster answered.
set -euo pipefail
here="$(pwd)"
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

refuse() {
    echo "submit: $1" >&2
    exit 2
}

ray="${RLHF_RAY_VENV:-$checkout/.venv}/bin/ray"
if [ ! -x "$ray" ]; then
    ray="$(command -v ray || true)"
    [ -n "$ray" ] || refuse "no ray command found: run launch/setup.sh first"
fi

# Options of `ray job submit` come before `--`; without one there are none.
options=()
overrides=("$@")
for ((i = 0; i < $#; i++)); do
    if [ "${overrides[i]}" = -- ]; then
        options=("${overrides[@]:0:i}")
        overrides=("${overrides[@]:i+1}")
        break
    fi
done

# The job runs in a throw-away copy of this tree, so a relative folder would be
# lost with it. Relative here means: relative to where this script was called.
absolute() {
    case "$1" in
    /* | *://*) echo "$1" ;;
    *) echo "$here/$1" ;;
    esac
}

recipe=run
output_dir=
rest=()
for override in "${overrides[@]}"; do
    # Hydra's signs before a key that exists mean nothing.
    plain="${override#+}" && plain="${plain#+}"
    case "$plain" in
    output_dir=*[\"\'\$]* | recipe=*[\"\'\$]* | resume=*[\"\'\$]*)
        refuse "$override: this script reads ${plain%%=*} itself; write it without quotes of its own \
and without \${...}, as in ${plain%%=*}=/shared/runs/a" ;;
    output_dir=*) output_dir="${plain#*=}" ;;
    recipe=*) recipe="${plain#*=}" && rest+=("$plain") ;;
    resume=auto | resume=never) rest+=("$plain") ;;
    resume=*) rest+=("resume=$(absolute "${plain#*=}")") ;;
    --check) refuse "--check: the configuration is always checked before it is submitted; leave it out" ;;
    --*) refuse "$override: options of 'ray job submit' go before a '--'" ;;
    *) rest+=("$override") ;;
    esac
done
output_dir="$(absolute "${output_dir:-$checkout/outputs/$recipe}")"

export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-${RAY_ADDRESS:-http://127.0.0.1:8265}}"
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
if [ "$RAY_AUTH_MODE" = token ] && [ -z "${RAY_AUTH_TOKEN:-}" ]; then
    token_file="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
    [ -s "$token_file" ] || refuse "no token: RAY_AUTH_TOKEN is unset and $token_file is missing or \
empty. Copy the token that the cluster was started with ('ray get-auth-token' prints it there; \
'ray get-auth-token --generate' makes one before a cluster is started), or set \
RAY_AUTH_MODE=disabled for a cluster without authentication."
fi

python="$(dirname "$ray")/python"
if (cd "$checkout" && "$python" -c 'import rlhf_ray.config.load') >/dev/null 2>&1; then
    (cd "$checkout" && "$python" -m rlhf_ray.main --check "${rest[@]}" "output_dir=$output_dir") ||
        refuse "nothing was submitted"
else
    echo "submit: the configuration is not checked here, because $python has no rlhf_ray; the job \
checks it" >&2
fi

# Ray would show a traceback. Other forms of an address, and proxies, are left to it.
if [[ "$RAY_API_SERVER_ADDRESS" =~ ^https?://(\[[^]]+\]|[^:/]+)(:([0-9]+))?(/|$) ]] &&
    [ -z "${http_proxy:-}${https_proxy:-}${HTTP_PROXY:-}${HTTPS_PROXY:-}" ]; then
    host="${BASH_REMATCH[1]//[\[\]]/}"
    case "$RAY_API_SERVER_ADDRESS" in https:*) port=443 ;; *) port=80 ;; esac
    port="${BASH_REMATCH[3]:-$port}"
    # shellcheck disable=SC2016  # The inner shell takes host and port as arguments.
    timeout 15 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$host" "$port" 2>/dev/null ||
        refuse "no Ray cluster answers at $RAY_API_SERVER_ADDRESS. Start one \
('$ray start --head', or launch/cluster.yaml and launch/hosts.yaml), forward its port 8265 to this \
machine ('ray dashboard FILE.yaml'), or name it in RAY_API_SERVER_ADDRESS=http://HOST:8265"
fi

echo "submit: $RAY_API_SERVER_ADDRESS, output in $output_dir" >&2
# Everything that stays behind is named below; without this Ray warns of its own list.
export RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES=
cd "$checkout"
exec "$ray" job submit --working-dir . \
    --runtime-env-json '{"excludes": [".git", ".venv", "outputs", "multirun", "__pycache__", "*.egg-info"]}' \
    "${options[@]}" -- \
    python -m rlhf_ray.main "${rest[@]}" "output_dir=$output_dir"
