#!/usr/bin/env bash
# The tests: sets up .venv with the [test] extra first (once), then runs pytest in the project's root.
#
#     bash launch/test.sh                           all but the slow ones, two processes side by side
#     bash launch/test.sh -m slow                   minutes of learning, many processes
#     bash launch/test.sh [pytest's arguments ...]
#
# PyTorch, which a few tests compare with, is installed where pip offers its CPU build; those tests skip without it.
# REFT_TORCH names another build (REFT_TORCH=torch==2.13.0). The exit code is pytest's.
set -euo pipefail
for word; do
    if [[ $word == -h || $word == --help ]]; then
        sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
    fi
done
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$root/launch/setup_env.sh"

setup_env "$root" test
[ $# -gt 0 ] || set -- -m "not slow" -n 2 --dist loadfile
exec .venv/bin/python -m pytest "$@"
