"""What several families' configs say in the same words: checks, activations, rotary parameters, windows, sizes."""

import math

from reft_jax.config.settings import Arch, RopeScaling
from reft_jax.errors import InputError

ACTIVATIONS = {  # transformers' names, and ours
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
WRITTEN = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


def require(where: str, config, **legal):
    """InputError for the first option that the decoder does not have; legal: name -> the one supported value."""
    for key, value in legal.items():
        got = getattr(config, key)
        if got != value and not (got is None and value is False):
            raise InputError(f"{where}: {key} is {got!r}; only {value!r} is supported")


def activation(where: str, name: str) -> str:
    if name not in ACTIVATIONS:
        raise InputError(f"{where}: the activation {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def rope_scaling(where: str, rope: dict, max_positions: int) -> RopeScaling:
    """The RopeScaling of a transformers `rope_parameters` dict."""
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise InputError(f"{where}: rope_type {kind!r} is not supported; supported are default, linear, llama3, yarn")
    if (rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise InputError(
            f"{where}: partial_rotary_factor {rope['partial_rotary_factor']!r} is not supported; only 1.0 is"
        )
    if kind == "default":
        return RopeScaling()
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        raise InputError(
            f"{where}: yarn with mscale and mscale_all_dim is not supported; give attention_factor instead"
        )
    needed = dict(linear=("factor",), llama3=("factor", "low_freq_factor", "high_freq_factor"))
    if absent := [key for key in needed.get(kind, ()) if rope.get(key) is None]:
        raise InputError(f"{where}: rope_type {kind!r} needs {', '.join(absent)}; it is null or absent")
    if kind == "linear":
        return RopeScaling(kind="linear", factor=float(rope["factor"]))
    original = int(rope.get("original_max_position_embeddings") or max_positions)
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=float(rope["factor"]),
            original_max_positions=original,
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
        )
    return RopeScaling(
        kind="yarn",
        factor=float(rope.get("factor") or max_positions / original),
        original_max_positions=original,
        beta_fast=float(rope.get("beta_fast") or 32),
        beta_slow=float(rope.get("beta_slow") or 1),
        attention_factor=float(rope.get("attention_factor") or 0.0),
        truncate=bool(rope.get("truncate", True)),
    )


def rope_written(theta: float, scaling: RopeScaling) -> dict:
    """config.json keys of rotary positions, in transformers 5's words and in those that programs before it read."""
    parameters = rope_parameters(theta, scaling)
    old = {key: value for key, value in parameters.items() if key != "rope_theta"}
    scaled = None if scaling.kind == "none" else old
    return {"rope_theta": theta, "rope_scaling": scaled, "rope_parameters": parameters}


def rope_parameters(theta: float, scaling: RopeScaling) -> dict:
    """transformers 5's `rope_parameters`."""
    out = {"rope_theta": theta, "rope_type": "default" if scaling.kind == "none" else scaling.kind}
    if scaling.kind != "none":
        out["factor"] = scaling.factor
    if scaling.kind in ("llama3", "yarn"):
        out["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "llama3":
        out |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        out |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        if scaling.attention_factor:
            out["attention_factor"] = scaling.attention_factor
    return out


def windows(where: str, kinds, window: int | None) -> tuple[int, ...]:
    """Arch.windows of transformers' `layer_types` and `sliding_window`."""
    if "sliding_attention" in kinds and not window:
        raise InputError(
            f"{where}: sliding_window is {window!r}, but layer_types has sliding_attention; give it a size"
        )
    legal = {"full_attention": 0, "sliding_attention": window or 0}
    if unknown := set(kinds) - set(legal):
        raise InputError(f"{where}: layer_types has {sorted(unknown)}; supported are {', '.join(legal)}")
    sizes = tuple(legal[kind] for kind in kinds)
    return sizes if any(sizes) else ()


def layer_types(arch: Arch) -> list[str]:
    sizes = arch.windows or (0,) * arch.num_layers
    return ["sliding_attention" if size else "full_attention" for size in sizes]


def windows_written(arch: Arch) -> dict:
    """config.json keys of Qwen's windows."""
    window = one_window(arch)
    return {"use_sliding_window": window is not None, "sliding_window": window, "layer_types": layer_types(arch)}


def one_window(arch: Arch) -> int | None:
    """The size that all windows of the model share; None without any. A Hugging Face config has room for one."""
    sizes = {size for size in arch.windows if size}
    if len(sizes) > 1:
        raise InputError(f"config.model.arch.windows: {sorted(sizes)}; a Hugging Face config holds one size of window")
    return max(sizes, default=None)


# The sizes of Arch by their names in config.json: of the families that speak as Llama does, and of GPT-2's.
LLAMA = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "ffn_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
    "max_positions": "max_position_embeddings",
}
GPT = {
    "vocab_size": "vocab_size",
    "dim": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
    "max_positions": "n_positions",
}


def sizes(config, names: dict[str, str]) -> dict:
    """The family and the sizes of a transformers config, as keywords of Arch."""
    found = {ours: getattr(config, theirs) for ours, theirs in names.items()}
    return {"family": config.model_type} | found | {"tie_embeddings": bool(config.tie_word_embeddings)}


def sizes_written(arch: Arch, names: dict[str, str], architecture: str, dtype: str) -> dict:
    """The config.json keys of `sizes`; torch_dtype is dtype's name before transformers 5."""
    written = {theirs: getattr(arch, ours) for ours, theirs in names.items()}
    about = {"architectures": [architecture], "model_type": arch.family}
    return about | written | {"dtype": dtype, "torch_dtype": dtype}


def base(config, where: str, rope=None, *, act: str = "hidden_act") -> dict:
    """What Llama-like configs say alike, as keywords of Arch. rope: where `rope_parameters` has more than one; act: the activation's key."""
    rope = dict(config.rope_parameters if rope is None else rope)
    return sizes(config, LLAMA) | dict(
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=rope_scaling(where, rope, config.max_position_embeddings),
        activation=activation(where, getattr(config, act)),
    )


def base_written(arch: Arch, architecture: str, dtype: str, *, act: str = "hidden_act") -> dict:
    """The config.json keys of `base`."""
    own = {"head_dim": arch.head_dim, act: WRITTEN[arch.activation]}
    return sizes_written(arch, LLAMA, architecture, dtype) | own | rope_written(arch.rope_theta, arch.rope_scaling)


def old_base(config, where: str, names: dict[str, str]) -> dict:
    """What GPT-2, CodeGen and OPT have in common, sizes and form, as keywords of Arch."""
    found = sizes(config, names)
    return found | dict(
        num_kv_heads=found["num_heads"],
        head_dim=found["dim"] // found["num_heads"],
        rope_theta=10000.0,
        norm="layer",
        activation=activation(where, config.activation_function),
        gated=False,
    )


def old_base_written(arch: Arch, names: dict[str, str], architecture: str, dtype: str) -> dict:
    """The config.json keys of `old_base`. InputError where it, having no key for them, could not tell the heads' number and size."""
    if arch.num_heads * arch.head_dim != arch.dim or arch.num_kv_heads != arch.num_heads:
        raise InputError(
            f"config.model.arch: a Hugging Face config of family {arch.family!r} needs num_heads x head_dim = dim and as many "
            f"num_kv_heads; got {arch.num_heads} x {arch.head_dim}, dim {arch.dim}, num_kv_heads {arch.num_kv_heads}"
        )
    return sizes_written(arch, names, architecture, dtype) | {"activation_function": WRITTEN[arch.activation]}


def gpt_base(config, where: str) -> dict:
    """What GPT-2 and CodeGen have in common, as keywords of Arch."""
    return old_base(config, where, GPT) | dict(ffn_dim=config.n_inner or 4 * config.n_embd, mlp_bias=True)


def gpt_base_written(arch: Arch, architecture: str, dtype: str) -> dict:
    """The config.json keys of `gpt_base`."""
    return old_base_written(arch, GPT, architecture, dtype) | {"n_inner": arch.ffn_dim}


def gemma_base(config, where: str, rope=None) -> dict:
    """What Gemma 2 and 3 have in common, as keywords of Arch."""
    return base(config, where, rope, act="hidden_activation") | dict(
        norm="rms_plus_one",
        post_norms=True,
        windows=windows(where, config.layer_types, config.sliding_window),
        attention_scale=float(config.query_pre_attn_scalar) ** -0.5,
        attention_softcap=float(config.attn_logit_softcapping or 0.0),
        logit_softcap=float(config.final_logit_softcapping or 0.0),
        embed_scale=math.sqrt(config.hidden_size),
    )


def gemma_base_written(arch: Arch, architecture: str, dtype: str) -> dict:
    """The config.json keys of `gemma_base`."""
    scalar = round(arch.attention_scale**-2, 6)
    return base_written(arch, architecture, dtype, act="hidden_activation") | {
        "sliding_window": one_window(arch),
        "layer_types": layer_types(arch),
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": arch.attention_softcap or None,
        "final_logit_softcapping": arch.logit_softcap or None,
        "attention_bias": False,
    }
