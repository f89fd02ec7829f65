"""Loads a made checkpoint of CodeLlama-7B's shape and compares its logits with torch's: python benchmarks/torch_parity.py [--toy]

For one NVIDIA GPU of 80 GB or more with torch beside jax; `--toy` is the same on a few layers, on whatever there is. torch
makes the checkpoint in a temporary folder (bfloat16, random), computes logits in float32, in bfloat16, and in bfloat16 with
its other attention; then this project loads it and does the same. Two starting distributions: `scaled` (embeddings of
deviation 1, output projections divided by sqrt(2 layers), as GPT-2 has it), and `plain` (deviation 0.02 throughout), whose
bfloat16 noise is larger than most gaps between its best two tokens: torch against itself shows how far parity can go there.

Prints JSON lines: sizes in MB (1e6 bytes), seconds, and for each pair of computations the least cosine of any position's
logits, the mean cosine, and how often the first's likeliest token is also the second's (or one of them: torch's bfloat16
logits are rounded to eight bits, so that several tokens may share the first place).
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

CODELLAMA_7B = dict(
    vocab_size=32016,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=16384,
    rope_theta=1e6,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)
TOY = CODELLAMA_7B | dict(hidden_size=256, intermediate_size=688, num_hidden_layers=3, num_attention_heads=4)
TOY |= dict(num_key_value_heads=4, vocab_size=2000)
BATCH, LENGTH = 16, 128
SHAPES = {"codellama_7b": CODELLAMA_7B, "toy": TOY}


def tokens(vocab_size: int):
    import numpy as np

    return np.random.default_rng(0).integers(3, vocab_size, (BATCH, LENGTH))


def in_torch(folder: pathlib.Path, shape: str, start: str):
    """Makes the checkpoint and saves torch's logits beside it, each [batch, length, vocabulary] float32."""
    import numpy as np
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.LlamaConfig(**SHAPES[shape], dtype="bfloat16", architectures=["LlamaForCausalLM"])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device=device)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1.0, 0.1)
            else:
                scaled = start == "scaled"
                below = (
                    (2 * config.num_hidden_layers) ** 0.5
                    if name.endswith(("o_proj.weight", "down_proj.weight"))
                    else 1.0
                )
                weight.normal_(0.0, 1.0 if scaled and "embed" in name else 0.02 / (below if scaled else 1.0))
    model.save_pretrained(folder, max_shard_size="5GB")
    del model
    batch = torch.tensor(tokens(config.vocab_size), device=device)
    for label, dtype, attention in (
        ("bfloat16", "bfloat16", "sdpa"),
        ("eager", "bfloat16", "eager"),
        ("float32", "float32", "eager"),
    ):
        load = transformers.LlamaForCausalLM.from_pretrained
        model = load(folder, dtype=getattr(torch, dtype), attn_implementation=attention).to(device).eval()
        with torch.no_grad():
            np.save(folder / f"torch_{label}.npy", model(batch).logits.float().cpu().numpy())
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps(dict(torch=torch.__version__)))


def in_jax(folder: pathlib.Path, shape: str, start: str):
    """Loads the checkpoint twice, as bfloat16 (timed) and as float32, and compares the logits of both with torch's."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from reft_jax import models

    jax.config.update("jax_default_matmul_precision", "highest")
    batch = tokens(SHAPES[shape]["vocab_size"])
    forward = jax.jit(models.logits, static_argnums=0)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
    found = {label: np.load(folder / f"torch_{label}.npy") for label in ("bfloat16", "eager", "float32")}
    line = dict(
        shape=shape, start=start, device=jax.devices()[0].device_kind, jax=jax.__version__, checkpoint_mb=round(size)
    )
    for dtype in ("bfloat16", "float32"):
        begin = time.perf_counter()
        model, params = models.load_hf(folder, param_dtype=dtype, compute_dtype=dtype)
        jax.block_until_ready(params)
        loaded = time.perf_counter()
        out = forward(model, params, batch).block_until_ready()
        first = time.perf_counter()
        forward(model, params, batch).block_until_ready()
        again = time.perf_counter()
        found[f"jax_{dtype}"] = np.asarray(out.astype(jnp.float32))
        if dtype == "bfloat16":
            line |= dict(
                load_s=round(loaded - begin, 2),
                first_forward_s=round(first - loaded, 2),
                forward_s=round(again - first, 4),
            )
            memory = jax.devices()[0].memory_stats() or {}
            line |= dict(peak_device_mb=round(memory.get("peak_bytes_in_use", 0) / 1e6))
        del params, out
    print(json.dumps(line), flush=True)
    pairs = (
        ("jax_bfloat16", "bfloat16"),
        ("bfloat16", "eager"),
        ("jax_bfloat16", "float32"),
        ("bfloat16", "float32"),
        ("jax_float32", "float32"),
    )
    for one, other in pairs:
        print(
            json.dumps(
                dict(start=start, compared=[_named(one), _named(other)], **_agreement(found[one], found[other]))
            ),
            flush=True,
        )


def _named(label):
    return {"bfloat16": "torch_bfloat16_sdpa", "eager": "torch_bfloat16_eager", "float32": "torch_float32"}.get(
        label, label
    )


def _agreement(one, other) -> dict:
    import numpy as np

    one, other = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (one, other))
    cosine = (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
    chosen = np.take_along_axis(other, one.argmax(-1)[:, None], -1)[:, 0]
    same = (chosen == other.max(-1)).mean()
    error = np.linalg.norm(one - other) / np.linalg.norm(other)
    return dict(
        positions=len(one),
        cosine_min=round(cosine.min(), 6),
        cosine_mean=round(cosine.mean(), 6),
        top1_same=round(same, 5),
        relative_error=float(f"{error:.3g}"),
    )


def main(*arguments):
    if len(arguments) == 4:
        return {"torch": in_torch, "jax": in_jax}[arguments[0]](pathlib.Path(arguments[1]), *arguments[2:])
    shape = "toy" if "--toy" in arguments else "codellama_7b"
    environment = os.environ | dict(XLA_PYTHON_CLIENT_PREALLOCATE="false", TOKENIZERS_PARALLELISM="false")
    for start in ("scaled", "plain"):
        with tempfile.TemporaryDirectory() as folder:
            for what in ("torch", "jax"):  # processes of their own: each leaves the whole device to the other
                subprocess.run([sys.executable, __file__, what, folder, shape, start], env=environment, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
