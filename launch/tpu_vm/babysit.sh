#!/usr/bin/env bash
# Brings a run to its end: creates the TPU where there is none, installs, starts, looks, and starts again what was interrupted.
#
#     bash launch/tpu_vm/babysit.sh [--queued] [--spot | --reserved] [--delete] [--dry-run] -- --config=... --workdir=... [...]
#
# Exit code 75, a preempted TPU and a host that went down are no failures: the same command goes on from the last checkpoint, up
# to --max-preemptions times (1000). Other failures are tried again up to --max-failures times (3). Exit code 2, bad input, is final.
# --poll: seconds between looks (60). --stuck: looks after which hosts that outlive the others' end are killed (10).
# --delete: the TPU goes when the run has ended well; otherwise it stays, and costs, until delete.sh. Also --node-count N.
# Ending this script does not end the run: started again, it finds it. Exit codes: 0 done, 1 given up, 2 bad input.
set -euo pipefail
here=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$here/../lib.sh"

queued='' spot='' reserved='' delete='' max_preemptions=1000 max_failures=3 poll=60 stuck=10
options "queued spot reserved delete node-count= max-preemptions= max-failures= poll= stuck=" "$@"
if ((${#rest[@]} == 0)); then misuse "the run's own arguments are missing (after --)"; fi
if [[ $spot && $reserved ]]; then misuse "--spot and --reserved exclude each other"; fi
tpu_settings
need ACCELERATOR_TYPE RUNTIME_VERSION REPOSITORY COMMIT PROCESSES
whole PROCESSES "$PROCESSES"
whole --max-preemptions "$max_preemptions" 0
whole --max-failures "$max_failures" 0
whole --stuck "$stuck"
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || misuse "--poll must be a number of seconds; got '$poll'"
if [[ $reserved && ! $queued ]]; then misuse "--reserved needs --queued"; fi

export NODE_COUNT=$node_count
create=(bash "$here/create.sh" ${spot:+--spot})
if [[ $queued ]]; then create=(bash "$here/queued.sh" ${spot:+--spot} ${reserved:+--reserved} --node-count "$node_count"); fi
remove=(bash "$here/delete.sh" --yes ${queued:+--queued} --node-count "$node_count")
setup=(bash "$here/setup.sh" --node-count "$node_count")
start=(bash "$here/run.sh" --node-count "$node_count")
look=(bash "$here/status.sh" ${queued:+--queued} --node-count "$node_count")

if [[ $dry_run ]]; then
    "${look[@]}" --dry-run
    "${create[@]}" --dry-run
    "${setup[@]}" --dry-run
    "${start[@]}" --dry-run -- "${rest[@]}"
    if [[ $delete ]]; then "${remove[@]}" --dry-run; fi
    exit 0
fi

preemptions=0 failures=0 blind=0 mixed=0 begun=''

note() { say "$(date -u +%FT%TZ) $*"; }

interrupted() {
    begun='' preemptions=$((preemptions + 1))
    note "$1 (interruption $preemptions of at most $max_preemptions)"
    if ((preemptions > max_preemptions)); then die "interrupted more than $max_preemptions times; giving up"; fi
}

failed() {
    begun='' failures=$((failures + 1))
    note "$1 (failure $failures of at most $max_failures)"
    if ((failures > max_failures)); then die "failed more than $max_failures times; giving up. The end of the logs: launch/tpu_vm/logs.sh"; fi
}

# Nothing can be told for a moment: the network, or the service. Only if that stays is it a failure.
unseen() {
    blind=$((blind + 1))
    if ((blind > 10)); then
        blind=0
        failed "$1, 10 times"
    fi
}

while :; do
    if ! state=$(tpu_state); then
        unseen "the TPU's state cannot be looked up"
        sleep "$poll"
        continue
    fi
    case $state in
        ABSENT)
            begun=''
            note "creating $TPU_NAME"
            if ! "${create[@]}"; then failed "it could not be created"; fi
            sleep "$poll"
            continue
            ;;
        READY | ACTIVE) ;;
        PREEMPTED | TERMINATED | SUSPENDED)
            # A TPU in such a state is never given back, and its name is taken as long as it is there.
            interrupted "$TPU_NAME is $state: deleting it"
            "${remove[@]}" || failed "it could not be deleted"
            sleep "$poll"
            continue
            ;;
        FAILED | UNKNOWN) # a request that has failed, a repair that has
            failed "$TPU_NAME is $state: deleting it"
            "${remove[@]}" || true
            sleep "$poll"
            continue
            ;;
        *) # CREATING, WAITING_FOR_RESOURCES, REPAIRING, DELETING, STOPPED (by somebody, who may start it again), ...
            note "$TPU_NAME is $state: waiting"
            sleep "$poll"
            continue
            ;;
    esac

    if ! told=$(run_status 2>&1); then
        say "$told"
        unseen "the hosts cannot be reached"
        sleep "$poll"
        continue
    fi
    final=0 running=0 good=0 saved=0 bad=0 gone=0
    while read -r line; do
        case $line in
            "reft_jax on "*": running "*) running=$((running + 1)) ;;
            "reft_jax on "*": ended 0") good=$((good + 1)) ;;
            "reft_jax on "*": ended 75") saved=$((saved + 1)) ;;
            "reft_jax on "*": ended 2") final=$((final + 1)) ;;
            "reft_jax on "*": ended "*) bad=$((bad + 1)) ;;
            "reft_jax on "*": none" | "reft_jax on "*": lost") gone=$((gone + 1)) ;;
        esac
    done <<<"$told"
    heard=$((running + good + saved + bad + final + gone))
    if ((heard != PROCESSES)); then
        say "$told"
        unseen "$heard hosts answer, and PROCESSES=$PROCESSES"
        sleep "$poll"
        continue
    fi
    blind=0

    if ((running == heard)); then
        begun=1 mixed=0
    elif ((running)); then
        # The others are about to notice: a host that is silent for 30 s is taken for dead.
        mixed=$((mixed + 1))
        if ((mixed >= stuck)); then
            note "some hosts still run although others have ended: killing them"
            bash "$here/stop.sh" --node-count "$node_count" --timeout 0 --kill || true
            mixed=0
        fi
    else
        mixed=0
        # An exit code from before this script began says nothing about these arguments.
        if [[ $begun ]]; then
            if ((final)); then
                say "$told"
                say "error: the run refuses its input (exit code 2); see launch/tpu_vm/logs.sh"
                exit 2
            elif ((bad)); then
                failed "the run has failed"
            elif ((saved || gone)); then
                interrupted "the run was interrupted"
            else
                note "done"
                if [[ $delete ]]; then "${remove[@]}"; fi
                exit 0
            fi
        fi
        note "starting the run"
        if "${setup[@]}" && "${start[@]}" -- "${rest[@]}"; then
            begun=1
        else
            failed "it could not be set up or started"
        fi
    fi
    sleep "$poll"
done
