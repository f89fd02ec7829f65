#!/usr/bin/env bash
# What the service says of the TPU, and what each host says of its run: none, running, ended CODE, or lost (the host went down).
#
#     bash launch/tpu_vm/status.sh [--queued] [--node-count N] [--dry-run]
#
# --queued: it was made by queued.sh. Exit codes of a run: 0 done, 1 failed, 2 bad input, 75 stopped after a complete save.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

queued=
options "queued node-count=" "$@"
tpu_settings
if [[ $dry_run ]]; then
    tpu_state
else
    state=$(tpu_state)
    echo "$TPU_NAME: $state"
    if [[ $state != READY && $state != ACTIVE ]]; then exit 0; fi
fi
run_status
