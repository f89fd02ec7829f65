#!/usr/bin/env bash
# The whole method in minutes on a laptop: pretrained base -> SFT warm-up -> SFT and ReFT -> evaluation, table and plots.
#
#     bash launch/demo.sh [workdir] [flags of reft_jax.main ...]
#     bash launch/demo.sh /tmp/canonical --config=configs/demo.py:annotations=canonical
#
# Sets up .venv first (once), then runs in `workdir` (runs/demo unless told otherwise). The exit code is main's: 0 done,
# 2 bad input, 75 stopped after a complete save.
set -euo pipefail
for word; do
    if [[ $word == -h || $word == --help ]]; then
        sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
    fi
    case $word in --config* | --workdir* | --process* | --coordinator* | --init_timeout* | --watchdog* | [!-]*) ;;
    *)
        echo "error: unknown argument '$word'; bash launch/demo.sh --help says what there is" >&2
        exit 2
        ;;
    esac
done
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$root/launch/setup_env.sh"

workdir=$root/runs/demo
if [[ $# -gt 0 && $1 != -* ]]; then
    case $1 in
    /* | *://*) workdir=$1 ;;
    \~ | \~/*) workdir=$HOME${1#\~} ;;
    *) workdir=${PWD%/}/$1 ;;
    esac
    shift
fi

setup_env "$root"
keep_temporaries
say "Running configs/demo.py in $workdir. Ctrl-C saves and stops; the same command goes on from there."
# exec: signals reach the run itself, and its exit code is this script's.
exec .venv/bin/python -m reft_jax.main --config=configs/demo.py --workdir="$workdir" "$@"
