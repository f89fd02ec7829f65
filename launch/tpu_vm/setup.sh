#!/usr/bin/env bash
# Puts the code at COMMIT on every host and installs it there, pinned, with the [tpu] extra. Can be run again at any time:
# what is there already takes seconds.
#
#     bash launch/tpu_vm/setup.sh [--node-count N] [--dry-run]
#
# The checkout there is set to COMMIT exactly: changes made on a host are lost.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

options "node-count=" "$@"
tpu_settings
need REPOSITORY COMMIT
if ! [[ $COMMIT =~ ^[0-9a-f]{7,40}$ ]]; then misuse "COMMIT must be a commit's hash, so that all hosts have the same code; got '$COMMIT'"; fi

dir=$(quote "${REMOTE_DIR:-reft_jax}")
# The commit itself is fetched where the server allows it; else all branches, among which it must be.
on_hosts "set -eu; [ -d $dir/.git ] || git clone --quiet --no-checkout -- $(quote "$REPOSITORY") $dir; cd -- $dir;\
 git fetch --quiet origin $COMMIT 2>/dev/null || git fetch --quiet --tags origin;\
 git checkout --quiet --force --detach $COMMIT; bash launch/tpu_vm/remote.sh setup"
