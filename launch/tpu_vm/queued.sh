#!/usr/bin/env bash
# Asks for TPU slices through the queue: the way to chips that are scarce, and the only one to several slices (multislice).
#
#     bash launch/tpu_vm/queued.sh [--spot | --reserved] [--node-count N] [--dry-run]
#
# Returns when the request is in the queue; status.sh shows when it is ACTIVE. One slice gets the name TPU_NAME, several
# TPU_NAME-0, TPU_NAME-1, ...; for those set NODE_COUNT in launch/env, so that the other scripts reach all of them.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

spot='' reserved='' queued=1
options "spot reserved node-count=" "$@"
if [[ $spot && $reserved ]]; then misuse "--spot and --reserved exclude each other"; fi
tpu_settings
need ACCELERATOR_TYPE RUNTIME_VERSION
mapfile -t more < <(create_flags)
if [[ $spot ]]; then more+=(--spot); fi
if [[ $reserved ]]; then more+=(--reserved); fi
if ((node_count > 1)); then
    more+=(--node-count="$node_count" --node-prefix="$TPU_NAME")
else
    more+=(--node-id="$TPU_NAME")
fi

tpus queued-resources create "$TPU_NAME" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${more[@]}"
