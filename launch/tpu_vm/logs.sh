#!/usr/bin/env bash
# The end of every host's log, each line with the host's name. Process 0's has the metrics; the others matter when they differ.
#
#     bash launch/tpu_vm/logs.sh [--lines N] [--follow] [--node-count N] [--dry-run]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

lines=50 follow=
options "lines= follow node-count=" "$@"
whole --lines "$lines" 0
tpu_settings
remote logs "$lines" "${follow:-0}"
