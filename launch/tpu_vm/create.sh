#!/usr/bin/env bash
# Creates one TPU slice at once, or fails if there is none to be had (queued.sh waits for one).
#
#     bash launch/tpu_vm/create.sh [--spot] [--dry-run]
#
# --spot: cheaper, may be taken away at any time (babysit.sh goes on with the run).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

spot=
options "spot" "$@"
tpu_settings
need ACCELERATOR_TYPE RUNTIME_VERSION
if ((node_count > 1)); then misuse "NODE_COUNT=$node_count: several slices come from the queue alone (queued.sh)"; fi
mapfile -t more < <(create_flags)
if [[ $spot ]]; then more+=(--spot); fi

tpus tpu-vm create "$TPU_NAME" --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION" "${more[@]}"
