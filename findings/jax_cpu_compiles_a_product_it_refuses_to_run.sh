#!/usr/bin/env bash
# On a CPU, jnp.einsum of two bfloat16 arrays with preferred_element_type=float32 compiles, and for some orders of axes is then refused when it
# runs. A guess would be that what compiles runs, or that all orders of one product are as legal as another.
#
# Seen with jax and jaxlib 0.10.2 (Python 3.11, x86-64, with and without AMX: the same under --xla_cpu_max_isa=AVX2). XLA's CPU backend runs
# products of bfloat16 with float32 sums in YNNPACK, and converts the factors of all others to float32 while it compiles. Which ones these are is
# decided before the transposes around a product are folded into it. Of attention's second product, bkgts,bksh->btkgh with t of one, the values
# become the first factor by that folding, which YNNPACK does not take, and nothing converts them any more: the first use of the result raises
# "UNIMPLEMENTED: Unsupported element type for DotThunk::Execute: BF16 x BF16 = F32". The same sum as lax.dot_general with the weights
# first runs, and so does the einsum in float32, with a bfloat16 result, or with --xla_cpu_experimental_ynn_fusion_type= in XLA_FLAGS.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/look.py" <<'PYTHON'
import jax, jax.numpy as jnp

wide = dict(preferred_element_type=jnp.float32)


def said(product, *factors):
    compiled = jax.jit(product).lower(*factors).compile()
    try:
        return str(jax.block_until_ready(compiled(*factors)).sum())
    except jax.errors.JaxRuntimeError as error:
        return str(error).split(":")[0] + " " + str(error).split("Execute: ")[-1]


weights, values = jnp.ones((4, 3, 5, 1, 32), jnp.bfloat16), jnp.ones((4, 3, 32, 64), jnp.bfloat16)
axes = "bkgts,bksh->btkgh"
print("einsum", said(lambda w, v: jnp.einsum(axes, w, v, **wide), weights, values))
print("einsum, bfloat16 sums", said(lambda w, v: jnp.einsum(axes, w, v), weights, values))
print("einsum of float32", said(lambda w, v: jnp.einsum(axes, w, v, **wide), *(x.astype(jnp.float32) for x in (weights, values))))
dimensions = (((3,), (2,)), ((0, 1), (0, 1)))
print("dot_general", said(lambda w, v: jax.lax.dot_general(w[:, :, :, 0], v, dimensions, **wide), weights, values))
PYTHON
expected='einsum, bfloat16 sums 122880
einsum of float32 122880.0
dot_general 122880.0'
refused='einsum UNIMPLEMENTED BF16 x BF16 = F32'
for flags in "" --xla_cpu_max_isa=AVX2 --xla_cpu_experimental_ynn_fusion_type=; do
    seen=$(JAX_PLATFORMS=cpu XLA_FLAGS=$flags "$python" "$folder/look.py" 2>/dev/null)
    first=$refused
    [ "$flags" != --xla_cpu_experimental_ynn_fusion_type= ] || first='einsum 122880.0'
    diff <(printf '%s\n' "$first" "$expected") <(echo "$seen") # ends the script where it is otherwise than stated
done
echo "as stated: compiled, and refused when it runs"
