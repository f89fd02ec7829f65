#!/usr/bin/env bash
# One run as several processes on this machine, each with its own CPU devices: what a pod does, without a pod.
#
#     bash launch/local.sh --processes N --devices D -- --config=configs/demo.py:smoke --workdir=runs/two
#
# Process 0 writes to the terminal, process I also to WORKDIR.process_I.log beside the folder. When one ends with an error the others
# are stopped. A signal to this script, or the end of its terminal, goes to all: they save at the same step, and the exit code is
# then 75. PYTHON names the interpreter (default: .venv's, if there is one).
set -uo pipefail
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    echo "usage: bash launch/local.sh --processes N --devices D -- <arguments of reft_jax.main>" >&2
    exit 2
}

processes='' devices=''
while (($#)); do
    case $1 in
        --processes | --devices)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { echo "error: $1 needs a whole number from 1; got '${2:-}'" >&2; usage; }
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        -h | --help)
            sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --) shift; break ;;
        *) echo "error: unknown argument '$1'" >&2; usage ;;
    esac
done
[[ $processes && $devices && $# -gt 0 ]] || usage

workdir=
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --workdir=*) workdir=${!i#--workdir=} ;;
        --workdir) j=$((i + 1)); workdir=${!j:-} ;;
    esac
done
[[ $workdir ]] || { echo "error: --workdir is missing" >&2; usage; }

python=${PYTHON:-$root/.venv/bin/python}
[[ -x $python ]] || python=$(command -v python3)
workdir=$("$python" -c 'import os, sys; print(os.path.expanduser(sys.argv[1]))' "$workdir") # as the run reads it
mkdir -p -- "$(dirname -- "$workdir")"
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu REFT_PROCESSES=$processes REFT_COORDINATOR=localhost:$port
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

pids=()
for ((i = 0; i < processes; i++)); do
    if ((i)); then
        REFT_PROCESS=$i "$python" -m reft_jax.main "$@" >"$workdir.process_$i.log" 2>&1 &
    else
        REFT_PROCESS=$i "$python" -m reft_jax.main "$@" &
    fi
    pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT HUP

code=0 left=$processes
while ((left)); do
    wait -n "${pids[@]}"
    status=$?
    running=()
    for pid in "${pids[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then running+=("$pid"); fi
    done
    ((${#running[@]} == left)) && continue # a signal ended the waiting, not a process
    left=${#running[@]}
    if ((status != 0 && code == 0)); then
        code=$status
        if ((status != 75 && left)); then
            echo "error: a process ended with code $status; stopping the other $left (logs: $workdir.process_*.log)" >&2
            kill -KILL "${running[@]}" 2>/dev/null
        fi
    fi
    pids=("${running[@]}")
done
((code > 128)) && code=1 # lost to a signal
exit "$code"
