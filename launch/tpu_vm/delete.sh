#!/usr/bin/env bash
# Deletes the TPU with the disks of its hosts, after asking. What is on the shared disk stays.
#
#     bash launch/tpu_vm/delete.sh [--queued] [--yes] [--node-count N] [--dry-run]
#
# --queued: it was made by queued.sh; its request goes too.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

queued='' yes=
options "queued yes node-count=" "$@"
tpu_settings
if ! [[ $yes || $dry_run ]]; then
    printf 'Delete %s in %s (project %s)? [y/N] ' "$TPU_NAME" "$ZONE" "$PROJECT" >&2
    read -r answer || answer=
    if [[ $answer != [yY] && $answer != yes ]]; then die "nothing was deleted"; fi
fi
if [[ $queued ]]; then
    tpus queued-resources delete "$TPU_NAME" --force --quiet
else
    tpus tpu-vm delete "$TPU_NAME" --quiet
fi
