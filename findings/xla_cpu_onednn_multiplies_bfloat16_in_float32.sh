#!/usr/bin/env bash
# jaxlib's wheel holds oneDNN, and a flag makes XLA's CPU backend use it for products; but those of bfloat16 reach it as float32. A guess would
# be that one asks for oneDNN to have its bfloat16 kernels (AVX512-BF16, AMX), which its own log names as this machine's.
#
# Seen with jax and jaxlib 0.10.2 (Python 3.11, x86-64 with AMX): with --xla_cpu_use_onednn=true, --xla_cpu_experimental_onednn_fusion_type=dot and
# YNNPACK's fusions off, ONEDNN_VERBOSE=1 shows oneDNN 3.7.3 running brg_matmul with src, weights and dst in f32 for a product of two bfloat16 arrays,
# since XLA has converted them before. It ran at 250 GFLOP/s on two cores whatever the dtype, where the default (YNNPACK, which takes bfloat16 with
# float32 sums) ran at 500 to 1,000. --xla_cpu_experimental_onednn_custom_call=true changes nothing: no program has a oneDNN call.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/look.py" <<'PYTHON'
import jax, jax.numpy as jnp

x, w = jnp.ones((512, 256), jnp.bfloat16), jnp.ones((256, 512), jnp.bfloat16)
product = jax.jit(lambda x, w: jax.lax.dot(x, w, preferred_element_type=jnp.float32)).lower(x, w).compile()
jax.block_until_ready(product(x, w))
print("factors", x.dtype.name, w.dtype.name)
print("onednn" if "onednn" in product.as_text() else "no onednn")
PYTHON
export JAX_PLATFORMS=cpu ONEDNN_VERBOSE=1
asked="--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_fusion_type=dot --xla_cpu_experimental_ynn_fusion_type="
seen=$(XLA_FLAGS=$asked "$python" "$folder/look.py" 2>/dev/null)
grep -E "^(factors|onednn$)" <<<"$seen"
version=$(grep -o "oneDNN v[0-9.]*" <<<"$seen")
kinds=$(grep "exec,cpu,matmul" <<<"$seen" | grep -oE "(src|wei|dst):[a-z0-9]+" | sort -u | tr '\n' ' ')
echo "$version $kinds"
diff <(echo "oneDNN v3.7.3 dst:f32 src:f32 wei:f32 ") <(echo "$version $kinds") # ends the script where it is otherwise than stated
diff <(printf 'factors bfloat16 bfloat16\nno onednn\n') <(XLA_FLAGS=--xla_cpu_experimental_onednn_custom_call=true "$python" "$folder/look.py" 2>/dev/null)
echo "as stated: bfloat16 in, float32 multiplied"
