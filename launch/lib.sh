# shellcheck shell=bash
# What the scripts of launch/ for clouds share; sourced by them. It reads launch/env (or $LAUNCH_ENV), if there is one.

root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
env_file=${LAUNCH_ENV:-$root/launch/env}
# shellcheck disable=SC1090 # the user's own file
if [[ -f $env_file ]]; then source "$env_file"; fi
dry_run=

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# A script's first comment is its help; the first command in it says how it is called.
misuse() {
    say "error: $*"
    say "usage: $(sed -n 's/^#     //p' "$0" | head -n 1)   (--help says more)"
    exit 2
}

# options "yes node-count=" "$@": --yes sets yes=1, --node-count 2 (or =2) sets node_count=2; what follows -- goes to `rest`.
# --dry-run and --help are everyone's.
options() {
    local known=" dry-run $1 " name value
    shift
    rest=()
    while (($#)); do
        case $1 in
            -h | --help)
                sed -n -e '/^#SBATCH/d; /^# shellcheck/d' -e '2,/^[^#]/s/^# \{0,1\}//p' "$0"
                exit 0
                ;;
            --) shift; rest=("$@"); return ;;
            --*)
                name=${1%%=*} name=${name#--} value=1
                if [[ $known == *" $name= "* ]]; then
                    if [[ $1 == *=* ]]; then
                        value=${1#*=}
                    else
                        (($# > 1)) || misuse "--$name needs a value"
                        value=$2
                        shift
                    fi
                elif [[ $known != *" $name "* ]]; then
                    misuse "unknown flag '$1'"
                elif [[ $1 == *=* ]]; then
                    misuse "--$name takes no value"
                fi
                printf -v "${name//-/_}" %s "$value"
                ;;
            *) misuse "unexpected argument '$1' (what the run itself gets comes after --)" ;;
        esac
        shift
    done
}

# need NAME ...: names all that are missing at once.
need() {
    local name missing=()
    for name; do
        if [[ -z ${!name:-} ]]; then missing+=("$name"); fi
    done
    if ((${#missing[@]})); then
        say "error: not set: ${missing[*]}. Set it in $env_file (launch/env.example says what each is)"
        exit 2
    fi
}

# whole NAME VALUE [LEAST]
whole() {
    if ! [[ $2 =~ ^(0|[1-9][0-9]*)$ ]] || (($2 < ${3:-1})); then misuse "$1 must be a whole number from ${3:-1}; got '$2'"; fi
}

# The words as any POSIX shell reads them back: they go through ssh to a shell there.
quote() {
    local word out='' escaped="'\\''"
    for word; do
        if ! [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then word="'${word//"'"/"$escaped"}'"; fi
        out+=" $word"
    done
    printf '%s' "${out# }"
}

# Runs the command, or prints it where --dry-run was given.
run() {
    if [[ $dry_run ]]; then
        printf '%s\n' "$(quote "$@")"
    else
        "$@"
    fi
}

# ------------------------------------------------------------------ TPU VMs

# Sets `queued`: several slices come from the queue alone, and what came from it is looked up and deleted there.
tpu_settings() {
    need PROJECT ZONE TPU_NAME
    node_count=${node_count:-${NODE_COUNT:-1}}
    whole --node-count "$node_count"
    queued=${queued:-}
    if ((node_count > 1)); then queued=1; fi
}

tpus() { run gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }

# Optional flags that both ways to create know, one a line.
create_flags() {
    if [[ ${NETWORK:-} ]]; then printf '%s\n' "--network=$NETWORK"; fi
    if [[ ${SERVICE_ACCOUNT:-} ]]; then printf '%s\n' "--service-account=$SERVICE_ACCOUNT"; fi
}

# on_hosts COMMAND: the shell command on every host of every slice at once.
on_hosts() {
    if ((node_count > 1)); then
        tpus queued-resources ssh "$TPU_NAME" --node=all --worker=all --command="$1"
    else
        tpus tpu-vm ssh "$TPU_NAME" --worker=all --command="$1"
    fi
}

# remote ACTION [ARG ...]: launch/tpu_vm/remote.sh of the checkout there.
remote() {
    local dir=${REMOTE_DIR:-reft_jax}
    on_hosts "cd -- $(quote "$dir") && bash launch/tpu_vm/remote.sh $(quote "$@")"
}

# One line for each host, also from hosts where nothing is set up yet.
run_status() {
    on_hosts "if cd -- $(quote "${REMOTE_DIR:-reft_jax}") 2>/dev/null && [ -f launch/tpu_vm/remote.sh ];\
 then bash launch/tpu_vm/remote.sh status; else echo \"reft_jax on \$(hostname): none\"; fi"
}

# The state's name as the service tells it, ABSENT where there is no such TPU; fails where it cannot be told.
tpu_state() {
    local told
    local look=(tpu-vm describe "$TPU_NAME" --format='value(state)')
    if [[ $queued ]]; then look=(queued-resources describe "$TPU_NAME" --format='value(state.state)'); fi
    if told=$(tpus "${look[@]}" --verbosity=error 2>&1); then
        printf '%s\n' "$told"
    elif [[ $told == *NOT_FOUND* || $told == *"not found"* ]]; then
        echo ABSENT
    else
        say "$told"
        return 1
    fi
}
