#!/usr/bin/env bash
# Submits a run to a GKE cluster that was made with XPK, as a JobSet of one or several slices.
#
#     bash launch/gke/xpk.sh [--num-slices N] [--max-restarts N] [--dry-run] -- --config=... --workdir=... [flags of reft_jax.main ...]
#
# IMAGE is used as it is (launch/docker/Dockerfile.tpu). XPK restarts on any failure of the program, up to --max-restarts times
# (50), and cannot tell exit code 75 from others; launch/gke/jobset.yaml can. --workdir must be on a disk that all pods share
# (`xpk storage attach`). XPK sends usage data unless told otherwise: xpk config set send-telemetry false.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

num_slices=1 max_restarts=50
options "num-slices= max-restarts=" "$@"
if ((${#rest[@]} == 0)); then misuse "the run's own arguments are missing (after --)"; fi
whole --num-slices "$num_slices"
whole --max-restarts "$max_restarts" 0
need PROJECT ZONE CLUSTER WORKLOAD IMAGE TPU_TYPE
if [[ " ${rest[*]}" != *" --processes"[=\ ]* ]]; then
    need PROCESSES
    whole PROCESSES "$PROCESSES"
    rest=(--processes="$PROCESSES" "${rest[@]}")
fi
# The grace period is what a save may take after SIGTERM; a spot machine gives about 30 s of it in any case.
run xpk workload create --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" --workload="$WORKLOAD" \
    --tpu-type="$TPU_TYPE" --num-slices="$num_slices" --docker-image="$IMAGE" \
    --max-restarts="$max_restarts" --restart-on-user-code-failure --termination-grace-period-seconds=300 \
    --command="cd /opt/reft_jax && python -m reft_jax.main $(quote "${rest[@]}")"
