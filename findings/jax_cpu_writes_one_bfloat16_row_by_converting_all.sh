#!/usr/bin/env bash
# On a CPU, writing one row of a donated bfloat16 array (x.at[rows, places].set(new), as a cache of keys is written) converts the whole array to
# float32 and back, in every call. A guess would be that it is written in place, as in float32, and that half the bytes are half the work.
#
# Seen with jax and jaxlib 0.10.2 (Python 3.11, x86-64). XLA's CPU backend has no scatter of bfloat16: the compiled program converts its operand,
# scatters in float32, and converts the result. Of a cache of [64, 3, 256, 64], of which 1/256 is written, that took 3.2 to 8.5 ms where float32 takes
# 0.03 ms; dynamic_update_slice in a loop over layers shows the same convert around it. Donation does not help, and no flag was found.
# uint16 of the same bytes is not converted, but to view it as bfloat16 (bitcast_convert_type) is a pass over the array again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/look.py" <<'PYTHON'
import re
import jax, jax.numpy as jnp

for kind in ("float32", "uint16", "bfloat16"):
    cache, rows = jnp.zeros((64, 3, 256, 64), kind), jnp.arange(64)

    def written(cache, new, places):
        return cache.at[rows, :, places].set(new, unique_indices=True, indices_are_sorted=True)

    given = cache, jnp.ones((64, 3, 64), kind), jnp.arange(64)
    text = jax.jit(written, donate_argnums=0).lower(*given).compile().as_text()
    passes = re.findall(r"= (\w+)\[64,3,256,64\]\S* (?:convert|fusion)\(", text.split("ENTRY")[1])
    scattered = re.search(r"= (\w+)\[64,3,256,64\]\S* scatter\(", text)[1]
    print(kind, "scattered in", scattered, "whole arrays made:", *passes)
PYTHON
seen=$(JAX_PLATFORMS=cpu "$python" "$folder/look.py" 2>/dev/null)
echo "$seen"
expected='float32 scattered in f32 whole arrays made: f32
uint16 scattered in u16 whole arrays made: u16
bfloat16 scattered in f32 whole arrays made: f32 f32 bf16'
diff <(echo "$expected") <(echo "$seen") # ends the script where it is otherwise than stated
echo "as stated: one row of bfloat16 costs three passes over all of them"
