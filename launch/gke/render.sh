#!/usr/bin/env bash
# Fills in jobset.yaml and prints it, or submits it with --apply.
#
#     bash launch/gke/render.sh [--num-slices N] [--max-restarts N] [--apply] [--dry-run] -- --config=... --workdir=/workdir/... [...]
#
# What is filled in is checked first. --processes (hosts of all slices) is added. --max-restarts counts failures alone (3).
# To have the cluster check it without running it: ... | kubectl apply --dry-run=server -f -
# shellcheck disable=SC2016 # single-quoted dollar signs are text here
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

num_slices=1 max_restarts=3 apply=
options "num-slices= max-restarts= apply" "$@"
if ((${#rest[@]} == 0)); then misuse "the run's own arguments are missing (after --)"; fi
whole --num-slices "$num_slices"
whole --max-restarts "$max_restarts" 0
need WORKLOAD IMAGE GKE_ACCELERATOR GKE_TOPOLOGY CHIPS_PER_HOST HOSTS_PER_SLICE VOLUME_CLAIM
whole CHIPS_PER_HOST "$CHIPS_PER_HOST"
whole HOSTS_PER_SLICE "$HOSTS_PER_SLICE"

# matches NAME PATTERN WHAT
matches() { [[ ${!1} =~ ^($2)$ ]] || misuse "$1 must be $3; got '${!1}'"; }
label='[a-z0-9]([-a-z0-9]*[a-z0-9])?'
matches WORKLOAD "$label" "lower-case letters, digits and hyphens"
matches VOLUME_CLAIM "$label" "the name of a PersistentVolumeClaim"
matches GKE_ACCELERATOR "$label" "a node label such as tpu-v6e-slice"
matches GKE_TOPOLOGY '[0-9]+x[0-9]+(x[0-9]+)?' "a slice's shape such as 4x4"
matches IMAGE '[A-Za-z0-9._/:@-]+' "an image's address"

# The arguments as a YAML list of single-quoted scalars; $( would be Kubernetes' own expansion, $$( is the text.
args=
if [[ " ${rest[*]}" != *" --processes"[=\ ]* ]]; then rest=(--processes=$((num_slices * HOSTS_PER_SLICE)) "${rest[@]}"); fi
for word in "${rest[@]}"; do
    if [[ $word == *[$'\n\r\t']* ]]; then misuse "an argument has a line break or a tab in it: '$word'"; fi
    doubled="''" escaped='$$('
    word=${word//"'"/"$doubled"}
    args+="${args:+, }'${word//'$('/"$escaped"}'"
done

text=$(grep -v '^#' "$root/launch/gke/jobset.yaml")
for name in WORKLOAD IMAGE GKE_ACCELERATOR GKE_TOPOLOGY CHIPS_PER_HOST HOSTS_PER_SLICE VOLUME_CLAIM; do
    text=${text//"\${$name}"/"${!name}"}
done
text=${text//'${NUM_SLICES}'/"$num_slices"}
text=${text//'${MAX_RESTARTS}'/"$max_restarts"}
text=${text//'${ARGS}'/"[$args]"} # last: what is in it is not to be filled in

if [[ $apply && $dry_run ]]; then
    run kubectl apply -f - # what it would read is what this script prints without --apply
elif [[ $apply ]]; then
    kubectl apply -f - <<<"$text"
else
    printf '%s\n' "$text"
fi
