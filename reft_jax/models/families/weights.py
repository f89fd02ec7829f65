"""How a weight of a Hugging Face file becomes one of ours: what the families' tables are made of."""

import math
import re
import typing

import numpy as np

from reft_jax.errors import InputError

# What older files hold beside the weights: rotary tables, causal masks, positions. All of them follow from config.json.
BUFFERS = re.compile(
    r"(.*\.)?((original_)?inv_freq|cos_cached|sin_cached|masked_bias|causal_mask|position_ids|embed_scale"
    r"|(attn|self_attn|attention)\.bias)"
)
# What wraps a model names its weights so: DistributedDataParallel, torch.compile, FSDP and its checkpointing, PEFT.
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.")
INNER = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # and parts of a model
ADAPTERS = re.compile(r"\.(lora_[A-Za-z_]+|base_layer|modules_to_save|ia3_l|hada_w\w+|lokr_w\w+)(\.|$)")  # PEFT's


def unwrapped(names, prefix: str) -> dict[str, str]:
    """Name in the files -> the model's own name, of all names in the files: without what a wrapper has put before every one of them, a
    doubled `model.` among it. `prefix`: the family's."""
    own = {name: INNER.sub("", name) for name in names}
    while own:
        found = [head for head in WRAPPERS if all(name.startswith(head) for name in own.values())]
        inside = all(name.startswith((f"model.{prefix}", "model.lm_head.")) for name in own.values())
        if not found and not inside:
            break
        head = found[0] if found else "model."
        own = {name: there.removeprefix(head) for name, there in own.items()}
    return own


class Weight(typing.NamedTuple):
    """One of our arrays. `take` gives, by views alone, its part of the file's tensor with the axes in our order; so it
    also says where to write. A name with {} is one per layer, stacked on a leading axis here."""

    name: str
    shape: tuple[int, ...]  # in the file
    take: typing.Callable[[np.ndarray], np.ndarray] = lambda tensor: tensor


def same(name: str, *shape: int) -> Weight:
    return Weight(name, shape)


def matrix(name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Weight:
    """A torch.nn.Linear's [outputs, inputs]; ours is [*inputs, *outputs]."""

    def take(tensor):
        num = len(outputs)
        return tensor.reshape(*outputs, *inputs).transpose(*range(num, num + len(inputs)), *range(num))

    return Weight(name, (math.prod(outputs), math.prod(inputs)), take)


def conv(name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Weight:
    """The [inputs, outputs] of GPT-2's Conv1D."""
    return Weight(name, (math.prod(inputs), math.prod(outputs)), lambda t: t.reshape(*inputs, *outputs))


def bias(name: str, *outputs: int) -> Weight:
    return Weight(name, (math.prod(outputs),), lambda t: t.reshape(outputs))


def table(arch, names: dict[str, str], kernel=matrix) -> dict:
    """Our path -> Weight of every parameter of an Arch. names: ours, dotted -> the file's, which has {} for the layer of what is in the
    blocks; InputError for a parameter without one. kernel: how the blocks' matrices are stored. A family whose queries, keys and values
    are one matrix adds them itself."""
    d, n, k, h, f, v = arch.dim, arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.ffn_dim, arch.vocab_size
    norms = {"norm": d, "attention_norm": d} | ({} if arch.parallel else {"mlp_norm": d})
    norms |= {"attention_post_norm": d, "mlp_post_norm": d} if arch.post_norms else {}
    norms |= {"attention.q_norm": h, "attention.k_norm": h} if arch.qk_norm else {}
    heads = {"q": n, "k": k, "v": k} if "attention.q" in names else {}
    matrices = {f"attention.{name}": ((d,), (num, h), arch.qkv_bias) for name, num in heads.items()}
    matrices["attention.o"] = (n, h), (d,), arch.out_bias
    matrices |= {f"mlp.{name}": ((d,), (f,), arch.mlp_bias) for name in (["gate"] if arch.gated else []) + ["up"]}
    matrices["mlp.down"] = (f,), (d,), arch.mlp_bias

    out = {("embed", "kernel"): same(f"{names['embed']}.weight", v, d)}
    if arch.positions == "learned":
        rows = arch.max_positions + arch.position_offset
        out["positions", "kernel"] = same(f"{names['positions']}.weight", rows, d)
    if absent := [ours for ours in (*norms, *matrices) if ours not in names]:
        raise InputError(
            f"config.model.arch: a Hugging Face directory of family {arch.family!r} has no place for {absent[0]}"
        )
    path = {ours: (*(["blocks"] if "{}" in name else []), *ours.split(".")) for ours, name in names.items()}
    for ours, size in norms.items():
        out[*path[ours], "scale"] = same(f"{names[ours]}.weight", size)
        if arch.norm == "layer":
            out[*path[ours], "bias"] = same(f"{names[ours]}.bias", size)
    for ours, (inputs, outputs, biased) in matrices.items():
        out[*path[ours], "kernel"] = kernel(f"{names[ours]}.weight", inputs, outputs)
        if biased:
            out[*path[ours], "bias"] = bias(f"{names[ours]}.bias", *outputs)
    if not arch.tie_embeddings:
        out["unembed", "kernel"] = matrix("lm_head.weight", (d,), (v,))
        if arch.unembed_bias:
            out["unembed", "bias"] = bias("lm_head.bias", v)
    return out


LLAMA = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "attention_norm": "model.layers.{}.input_layernorm",
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
    **{f"attention.{name}": f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkvo"},
    **{f"attention.{name}_norm": f"model.layers.{{}}.self_attn.{name}_norm" for name in "qk"},
    **{f"mlp.{name}": f"model.layers.{{}}.mlp.{name}_proj" for name in ("gate", "up", "down")},
}
GEMMA = LLAMA | {  # norms before and after each part
    "attention_post_norm": "model.layers.{}.post_attention_layernorm",
    "mlp_norm": "model.layers.{}.pre_feedforward_layernorm",
    "mlp_post_norm": "model.layers.{}.post_feedforward_layernorm",
}


def llama_like(arch) -> dict:
    return table(arch, LLAMA)


def gemma_like(arch) -> dict:
    return table(arch, GEMMA)
