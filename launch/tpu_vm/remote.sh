#!/usr/bin/env bash
# What the other scripts of this folder run on each host, in the checkout there:
#
#     bash launch/tpu_vm/remote.sh setup | start PORT ARG ... | status | logs LINES FOLLOW | stop SECONDS KILL
#
# A host's run leaves its log, process ids and exit code in ~/reft_run. `supervise` is what `start` leaves behind.
set -euo pipefail
UV=0.13.8 # brings a Python where the image's is too old (Ubuntu 22.04 has 3.10)
state=$HOME/reft_run
host=$(hostname)

# The process is looked at, not just its number: after a reboot another one may have it.
running() { [[ -f $state/pid ]] && grep -qa 'reft_jax\.main' "/proc/$(<"$state/pid")/cmdline" 2>/dev/null; }

status() {
    local told=none
    if running; then
        told="running $(<"$state/pid")"
    elif [[ -f $state/exit_code ]]; then
        told="ended $(<"$state/exit_code")"
    elif [[ -f $state/pid ]]; then
        told=lost
    fi
    echo "reft_jax on $host: $told"
}

setup() {
    # shellcheck source-path=SCRIPTDIR source=../setup_env.sh
    source launch/setup_env.sh
    if ! usable "$PWD/.venv" && ! (find_python) >/dev/null 2>&1; then
        # The variable is for images whose system Python is not to be written to; older pips do not know it.
        PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user "uv==$UV"
        "$HOME/.local/bin/uv" python install --quiet 3.12
        PYTHON=$("$HOME/.local/bin/uv" python find --system 3.12)
        export PYTHON
    fi
    setup_env "$PWD" tpu
    echo "reft_jax on $host: set up at $(git rev-parse --short HEAD)"
}

start() {
    local port=$1
    shift
    if running; then
        echo "error: $host: a run is going on (process $(<"$state/pid")); launch/tpu_vm/stop.sh first" >&2
        exit 3
    fi
    mkdir -p "$state"
    rm -f "$state/pid" "$state/exit_code"
    if [[ $port != default ]]; then export JAX_COORDINATOR_PORT=$port; fi
    # A session of its own: it outlives the connection, and can be killed with all it has started.
    setsid nohup bash launch/tpu_vm/remote.sh supervise "$@" >>"$state/log" 2>&1 </dev/null &
    for _ in {1..100}; do
        if [[ -s $state/pid ]]; then break; fi
        sleep 0.1
    done
    status
}

supervise() {
    local child code=0
    echo "$$" >"$state/group"
    echo "== $(date -u +%FT%TZ) $host $(git rev-parse --short HEAD 2>/dev/null || true): $*"
    PYTHONUNBUFFERED=1 .venv/bin/python -m reft_jax.main "$@" &
    child=$!
    trap 'kill -TERM "$child" 2>/dev/null' TERM
    echo "$child" >"$state/pid.part" && mv "$state/pid.part" "$state/pid"
    while :; do
        code=0
        wait "$child" || code=$?
        if ! kill -0 "$child" 2>/dev/null; then break; fi # else a signal ended the waiting, not the run
    done
    echo "== $(date -u +%FT%TZ) $host: exit code $code"
    echo "$code" >"$state/exit_code.part" && mv "$state/exit_code.part" "$state/exit_code"
}

logs() {
    local follow=()
    if (($2)); then follow=(-F); fi
    tail -n "$1" "${follow[@]}" "$state/log" | sed -u "s/^/$host: /"
}

stop() {
    local seconds=$1 kill=$2 i
    if running; then kill -TERM "$(<"$state/pid")" 2>/dev/null || true; fi
    for ((i = 0; i < 10 * seconds; i++)); do
        if ! running; then break; fi
        sleep 0.1
    done
    if running && ((!kill)); then
        status
        echo "error: $host: still running after $seconds s; again with --kill ends it without a save" >&2
        exit 4
    fi
    if ((kill)); then
        if running; then command kill -KILL -- "-$(<"$state/group")"; fi
        rm -f "${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}"
        sleep 0.2
    fi
    for _ in {1..50}; do # the supervisor writes the exit code a moment after the end
        if [[ -f $state/exit_code ]] || ((kill)); then break; fi
        sleep 0.1
    done
    status
}

case ${1:-} in
    setup | start | supervise | status | logs | stop) "$@" ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0" ;;
    *)
        echo "error: unknown action '${1:-}'; it is setup, start, status, logs or stop (--help says more)" >&2
        exit 2
        ;;
esac
