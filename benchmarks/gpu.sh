#!/usr/bin/env bash
# Rollout and update at CodeLlama-7B's shape (random weights, bfloat16) on an NVIDIA GPU of 80 GB or more, in 10 min:
#
#     bash benchmarks/gpu.sh [RESULTS.jsonl]          (default: runs/gpu.jsonl, written anew)
#     bash benchmarks/gpu.sh --toy [RESULTS.jsonl]    the same path on a CPU, at toy sizes, in a minute
#
# Lines are written as they are made and a table is printed at the end. Every part has its own time limit, and all of
# them together ten minutes; what failed or was not reached is a row of the table. PYTHON names the interpreter.
#
# What fits, in GB (1e9 bytes), 6.74e9 parameters of two bytes being 13.5:
# - Rollout. A position's keys and values: 2 x 32 layers x 4,096 x 2 bytes = 0.52 MB; a slot's 120 + 400 of them 0.27.
#   The engine holds the weights twice (as given, and as decoding reads them): 27 + 0.27 x slots = 97 for 256 slots, 62
#   for 128. So 256 is tried and then 192 on a card of 130 GB or more, and 128 and then 64 below that.
# - Update. Parameters, gradients, reference and AdamW's two moments in float32 would be 5 x 27 = 135, so all of them
#   are bfloat16: 5 x 13.5 = 67.5. With `--remat` 16 rows of 520 positions keep 16 x 520 x 4,096 x 2 bytes x 32 layers
#   = 2.2; one block's own and the scoring of all 64 rows take some 8: 78 before what the compiler adds. Below 130 GB
#   the update is that of llama3_2_1b (1.24e9 parameters, 12 GB and activations).
# 1,024 prompts go through the slots, two batches through the batch sampler and one through transformers, which is slow:
# tokens a second are what is compared.
set -uo pipefail
cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3}

toy=
if [[ ${1:-} == --toy ]]; then
    toy=1
    shift
fi
results=${1:-runs/gpu.jsonl}
mkdir -p "$(dirname -- "$results")"
deadline=$((SECONDS + 590))

# part SECONDS NAME ARGUMENTS...: one benchmark's lines to the screen and the results; fails as it fails.
part() {
    local limit=$1 name=$2 left=$((deadline - SECONDS)) status=0
    shift 2
    if ((left < limit)); then limit=$left; fi
    if ((limit < 5)); then
        status="no time left"
    else
        timeout -k 5 "$limit" "$python" "$@" | tee -a "$results"
        status=${PIPESTATUS[0]}
    fi
    if [[ $status != 0 ]]; then
        printf '{"part": "%s", "failed": "%s"}\n' "$name" "${status/#124/no end after $limit s}" | tee -a "$results"
        return 1
    fi
}

if [[ $toy ]]; then
    export JAX_PLATFORMS=cpu
    hardware=CPU
    rollout=(--toy --dtype=bfloat16) update=(--toy --dtype=bfloat16 --remat) tries=(8) many=()
else
    export JAX_PLATFORMS=cuda
    hardware=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | head -n 1)
    memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
    if ((${memory:-0} >= 130000)); then
        tries=(256 192) size=codellama_7b
    else
        tries=(128 64) size=llama3_2_1b
    fi
    rollout=(--size=codellama_7b --dtype=bfloat16) many=(--num=1024)
    update=("--size=$size" --dtype=bfloat16 --remat)
fi

"$python" -c 'import sys; sys.path.insert(0, "."); from benchmarks import common; common.about(*sys.argv[1:])' \
    "bash benchmarks/gpu.sh${toy:+ --toy}" "$hardware" | tee "$results"

slots=${tries[-1]}
for try in "${tries[@]}"; do
    if part 170 "sampler slots, $try" benchmarks/rollout.py "${rollout[@]}" "--slots=$try" "${many[@]}" slots; then
        slots=$try
        break
    fi
done
part 130 "update ours" benchmarks/update.py "${update[@]}" ours
part 130 "sampler batch" benchmarks/rollout.py "${rollout[@]}" "--slots=$slots" "--num=$((2 * slots))" batch
part 90 "sampler transformers" benchmarks/rollout.py "${rollout[@]}" "--slots=$slots" "--num=$slots" transformers
part 100 "update torch" benchmarks/update.py "${update[@]}" torch

echo
"$python" benchmarks/table.py "$results"
! grep -q '"failed"' "$results"
