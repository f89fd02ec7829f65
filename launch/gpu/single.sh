#!/usr/bin/env bash
# One machine with NVIDIA GPUs: one process for all of them.
#
#     bash launch/gpu/single.sh [--dry-run] -- --config=... --workdir=... [flags of reft_jax.main ...]
#
# Needs an environment with the [gpu] extra: .venv, or the one that is active. XLA_FLAGS and XLA_PYTHON_CLIENT_MEM_FRACTION are set
# unless they are. The exit code is main's.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

options "" "$@"
if ((${#rest[@]} == 0)); then misuse "the run's own arguments are missing (after --)"; fi
if ! [[ $dry_run ]]; then
    gpus=$(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>&1) ||
        die "nvidia-smi finds no GPU here (${gpus:-nothing said}): is the driver installed, and are GPUs visible?"
    say "$gpus"
fi
python=$root/.venv/bin/python
if [[ ! -x $python ]]; then python=python3; fi

# Collectives run while matrix products do (JAX's documentation, "GPU performance tips"); NVIDIA's images set it too.
export XLA_FLAGS="${XLA_FLAGS---xla_gpu_enable_latency_hiding_scheduler=true}"
# JAX takes 75 % of the memory unless told; NVIDIA's JAX-Toolbox ("GPU performance") recommends 0.8 to 0.9.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION-0.9}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

command=(env "XLA_FLAGS=$XLA_FLAGS" "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION" "$python" -m reft_jax.main "${rest[@]}")
if [[ $dry_run ]]; then
    run "${command[@]}"
else
    exec "${command[@]}" # signals reach the run itself
fi
