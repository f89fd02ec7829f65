#!/usr/bin/env bash
# The runs of one of the paper's tables, one after the other: what is done is skipped, what was stopped goes on. Then the table.
#
#     bash launch/table.sh TABLE ROOT [--dry-run] [--variant=script] [--seed=N] [--smoke] [launcher ...]
#     DATA=~/mwp MODELS=~/models bash launch/table.sh main runs/paper
#     bash launch/table.sh small runs/try --smoke
#     bash launch/table.sh arithmetic runs/arithmetic
#     DATA=~/mwp MODELS=~/models bash launch/table.sh svamp_small runs/svamp_small
#
# TABLE is one of those that `python -m reft_jax.tables ROOT` prints, for this folder too. DATA has the authors' data files, MODELS a
# Hugging Face directory for each preset (MODELS/codellama_7b, ...; MODELS/words for svamp_small); --smoke and the table arithmetic
# need neither. `launcher` is what gets the arguments of reft_jax.main, for instance `srun python -m reft_jax.main` or
# `bash launch/local.sh --processes 2 --devices 4 --`; it starts in the project's folder. Exit codes: 0 all done, 2 bad arguments,
# 75 stopped after a complete save (the same command goes on), else that of the run that failed.
set -uo pipefail
root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
for word; do
    if [[ $word == -h || $word == --help ]]; then
        sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
    fi
done

# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$root/launch/setup_env.sh"

misuse() {
    echo "error: $*" >&2
    echo "usage: bash launch/table.sh TABLE ROOT [--dry-run] [--variant=V] [--seed=N] [--smoke] [launcher ...]" >&2
    exit 2
}

absolute() {
    case $1 in
        /*) printf '%s' "$1" ;;
        \~ | \~/*) printf '%s' "$HOME${1#\~}" ;;
        *) printf '%s' "${PWD%/}/$1" ;;
    esac
}

if (($# < 2)) || [[ $1 == -* || $2 == -* ]]; then misuse "TABLE and ROOT are needed"; fi
table=$1 folder=$(absolute "$2") dry_run='' smoke='' flags=()
shift 2
while (($#)); do
    case $1 in
        --dry-run) dry_run=1 ;;
        --smoke) smoke=1 flags+=("$1") ;;
        --variant=* | --seed=*) flags+=("$1") ;;
        -*) misuse "unknown flag '$1'" ;;
        *) break ;;
    esac
    shift
done

if [[ ! $dry_run && ! $smoke && $table != arithmetic ]]; then
    for name in DATA MODELS; do
        [[ -d ${!name:-} ]] || misuse "$name must be a folder; it is '${!name:-}' (--help says what is in it)"
    done
    DATA=$(absolute "$DATA") MODELS=$(absolute "$MODELS")
fi

python=${PYTHON:-$root/.venv/bin/python}
[[ -x $python ]] || python=$(command -v python3)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
launcher=("$python" -m reft_jax.main)
if [[ $smoke || $table == arithmetic || $table == svamp_small ]]; then keep_temporaries; fi
if (($#)); then launcher=("$@"); fi

cd -- "$root" || exit 1
plan=$("$python" -m reft_jax.tables "$folder" --plan "--table=$table" ${flags[@]+"${flags[@]}"}) || exit

child='' signals=0 words=()
trap 'signals=$((signals + 1)); [[ $child ]] && kill -TERM "$child" 2>/dev/null' TERM INT HUP

while read -r line <&3; do
    [[ $line == '#'* ]] && continue
    if [[ $dry_run ]]; then
        workdir=${line##*--workdir=}
        eval "workdir=\"$workdir" # its closing quote is the command's
    else
        eval "words=(${line#python -m reft_jax.main })" # $DATA and $MODELS are filled in
        workdir=${words[-1]#--workdir=}
    fi
    if [[ -e $workdir/evaluate/DONE ]]; then
        echo "# done: $workdir"
        continue
    fi
    if [[ $dry_run ]]; then
        printf '%s %s\n' "${launcher[*]}" "${line#python -m reft_jax.main }"
        continue
    fi
    echo "# $workdir"
    "${launcher[@]}" "${words[@]}" 3<&- &
    child=$!
    code=127
    while :; do
        before=$signals
        wait "$child"
        status=$?
        ((status == 127)) || code=$status # 127: its code was told before
        ((signals == before)) && break # else a signal may have ended the waiting, not the run
    done
    child=''
    if ((code == 75 || (signals && code == 0))); then
        echo "stopped: the same command goes on from here" >&2
        exit 75
    elif ((code)); then
        echo "error: $workdir ended with code $code; the same command goes on from there" >&2
        exit "$code"
    fi
done 3<<<"$plan"

[[ $dry_run ]] || exec "$python" -m reft_jax.tables "$folder" "--table=$table" ${flags[@]+"${flags[@]}"}
