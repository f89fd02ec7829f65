#!/usr/bin/env bash
# Starts the same run on every host and returns; it goes on without this machine.
#
#     bash launch/tpu_vm/run.sh [--node-count N] [--dry-run] -- --config=... --workdir=... [flags of reft_jax.main ...]
#
# --processes=PROCESSES is added, so that a host that does not join is an error. Each host keeps a log (logs.sh) and the
# exit code (status.sh). --workdir must be on a disk that all hosts share.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

options "node-count=" "$@"
if ((${#rest[@]} == 0)); then misuse "the run's own arguments are missing (after --)"; fi
tpu_settings
if [[ " ${rest[*]}" != *" --processes"[=\ ]* ]]; then
    need PROCESSES
    whole PROCESSES "$PROCESSES"
    rest=(--processes="$PROCESSES" "${rest[@]}")
fi
if [[ ${COORDINATOR_PORT:-} ]]; then whole COORDINATOR_PORT "$COORDINATOR_PORT"; fi

remote start "${COORDINATOR_PORT:-default}" "${rest[@]}"
