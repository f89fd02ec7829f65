#!/usr/bin/env bash
# Asks the run on every host to save and end (SIGTERM), and waits until it has; the exit code is then 75.
#
#     bash launch/tpu_vm/stop.sh [--timeout SECONDS] [--kill] [--node-count N] [--dry-run]
#
# --timeout: how long it may take (600). --kill: what has not ended by then is killed with all it has started, and libtpu's
# lock file removed; for processes that are half dead and hold the chips.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

timeout=600 kill=
options "timeout= kill node-count=" "$@"
whole --timeout "$timeout" 0
tpu_settings
remote stop "$timeout" "${kill:-0}"
