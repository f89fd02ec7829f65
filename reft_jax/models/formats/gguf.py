"""GGUF files: their metadata as a Hugging Face config, their tensors by Hugging Face's names and in its layouts.

llama.cpp's converter changes what it stores, and here that is undone: Llama's queries and keys have the two halves of each head's dimensions
interleaved, Gemma's norms are 1 + w, GPT-2's matrices are turned around. What a file does not say is its architecture's, as in llama.cpp
(Gemma 3: every sixth layer sees everything, the others have a RoPE base of 10,000); so `rope_freqs.weight`, a divisor of each rotary
frequency, is told as the Llama 3 scaling that it comes from, or refused.

Numbers are made of blocks by the package `gguf`, a few rows at a time. A tensor's place is checked before it is read.
"""

import math
import pathlib
import re
import typing

import numpy as np

from reft_jax.config import packages
from reft_jax.config.settings import RopeScaling
from reft_jax.data import gguf
from reft_jax.data.gguf import REMEDY, Header
from reft_jax.errors import InputError
from reft_jax.models import formats
from reft_jax.models.families import gpt2, translate, weights
from reft_jax.models.rotary import rotary_frequencies

STRIP = 2**18  # numbers made at a time: some MB of blocks and what they become on the way
ALIGNMENT = 64  # bytes; a CPU's devices take an array that begins so as it is
TENSOR = re.compile(r"(?:blk\.([0-9]{1,6})\.)?(\w+)\.(weight|bias)")
FREQUENCIES = "rope_freqs.weight"
NAMES = {  # the files', and ours of the families' tables
    "token_embd": "embed",
    "position_embd": "positions",
    "output_norm": "norm",
    "attn_norm": "attention_norm",
    "ffn_norm": "mlp_norm",
    "post_attention_norm": "attention_post_norm",
    "post_ffw_norm": "mlp_post_norm",
    **{f"attn_{name}": f"attention.{name}" for name in ("q", "k", "v", "q_norm", "k_norm", "qkv")},
    "attn_output": "attention.o",
    **{f"ffn_{name}": f"mlp.{name}" for name in ("gate", "up", "down")},
    "output": "unembed",
}
# Keys of an architecture that change what is computed, and the values with which they do not
NEUTRAL = {
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "logit_scale": (0.0, 1.0),
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.temperature_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
}


def library():
    """The package gguf, which alone knows the types that tensors are stored in."""
    try:
        return packages.load("gguf", "GGML_QUANT_SIZES", "quants")
    except ImportError as error:
        raise InputError(f"GGUF files need the package gguf ({error}): pip install gguf") from error


def _read(path) -> Header:
    """A file's header, its tensors' places checked. InputError for types that are unknown and for tensors that are not whole in the file or
    share bytes."""
    header, sizes, ends = gguf.read(path), library().GGML_QUANT_SIZES, []
    known = {int(kind): kind for kind in sizes}
    for name, (shape, kind, first) in header.tensors.items():
        if kind not in known:
            raise InputError(f"{path}: {name} is of the unknown type {kind}; known are {_listed(sizes)}")
        block, size = sizes[known[kind]]
        if shape[-1] % block:
            raise InputError(
                f"{path}: {name} has rows of {shape[-1]}, no multiple of {known[kind].name}'s {block}; {REMEDY}"
            )
        ends.append((first, first + math.prod(shape) // block * size, name))
    last, before, total = 0, "", path.stat().st_size
    for first, end, name in sorted(ends):
        if first < last:
            raise InputError(f"{path}: {before} and {name} share bytes; {REMEDY}")
        if end > total:
            raise InputError(f"{path}: {name} ends at byte {end}, and the file has {total}; {REMEDY}")
        last, before = end, name
    return header


def _listed(kinds) -> str:
    return ", ".join(kind.name for kind in kinds)


# ------------------------------------------------------------------ metadata -> config.json


class _Keys:
    """The keys of a header's architecture."""

    def __init__(self, header: Header):
        self.header, self.name = header, header.get("general.architecture", str)
        if self.name not in ARCHITECTURES:
            raise InputError(
                f"{header.path}: general.architecture {self.name!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
            )

    def int(self, key: str, default: typing.Any = ...) -> int:
        return self.header.get(f"{self.name}.{key}", int, default)

    def float(self, key: str, default: typing.Any = ...) -> float:
        return self.header.get(f"{self.name}.{key}", float, default)

    def refuse(self, key: str, why: str):
        """Raises InputError for the value of a key."""
        said = self.header.metadata.get(f"{self.name}.{key}")
        raise InputError(f"{self.header.path}: {self.name}.{key} is {said!r}; {why}")


def config(path: pathlib.Path) -> dict:
    """What a file's metadata says, as a Hugging Face config.json. InputError for what is not supported."""
    header = _read(path)
    if (kind := header.get("general.type", str, "model")) != "model":
        raise InputError(f"{path}: it holds no model, but general.type {kind!r}; name the file of a whole model")
    if (parts := header.get("split.count", int, 1)) > 1:
        raise InputError(f"{path}: it is one of {parts} parts; join them first: llama-gguf-split --merge FIRST NEW")
    keys = _Keys(header)
    for key, legal in NEUTRAL.items():
        if header.metadata.get(f"{keys.name}.{key}", legal[0]) not in legal:
            keys.refuse(key, f"only {' or '.join(map(str, legal))} is supported")
    blocks = {int(found[1]) for name in header.tensors if (found := TENSOR.fullmatch(name)) and found[1]}
    if blocks != set(range(min(num := keys.int("block_count"), len(header.tensors) + 1))):
        keys.refuse("block_count", f"it has tensors of {len(blocks)} layers; {REMEDY}")
    if "token_embd.weight" not in header.tensors:
        raise InputError(f"{path}: it has no tensor token_embd.weight; {REMEDY}")
    shared = dict(
        vocab_size=header.tensors["token_embd.weight"].shape[0],
        tie_word_embeddings="output.weight" not in header.tensors,
    )
    return shared | ARCHITECTURES[keys.name].config(keys, num)


def _gpt2(keys: _Keys, num_layers: int) -> dict:
    return dict(
        model_type="gpt2",
        n_layer=num_layers,
        n_embd=keys.int("embedding_length"),
        n_head=keys.int("attention.head_count"),
        n_inner=keys.int("feed_forward_length"),
        n_positions=keys.int("context_length"),
        layer_norm_epsilon=keys.float("attention.layer_norm_epsilon"),
    )


def _base(keys: _Keys, num_layers: int) -> dict:
    """What all but GPT-2 say alike."""
    heads, size = keys.int("attention.head_count"), keys.int("embedding_length")
    head = keys.int("attention.key_length", size // heads if heads else 0)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.int(key, head) != head:
            keys.refuse(key, f"only a head's size is supported, {head}")
    return dict(
        num_hidden_layers=num_layers,
        hidden_size=size,
        intermediate_size=keys.int("feed_forward_length"),
        num_attention_heads=heads,
        num_key_value_heads=keys.int("attention.head_count_kv", heads),
        head_dim=head,
        max_position_embeddings=keys.int("context_length"),
        rms_norm_eps=keys.float("attention.layer_norm_rms_epsilon"),
        rope_parameters=_rope(keys, head),
    )


def _rope(keys: _Keys, head: int) -> dict:
    """transformers' `rope_parameters`."""
    theta, header = keys.float("rope.freq_base", 10000.0), keys.header
    kind = header.get(f"{keys.name}.rope.scaling.type", str, "linear")
    factor = keys.float("rope.scaling.factor", keys.float("rope.scale_linear", 0.0)) or 1.0
    scaled = kind != "none" and (kind, factor) != ("linear", 1.0)
    if FREQUENCIES in header.tensors:
        if scaled:
            keys.refuse("rope.scaling.type", f"with {FREQUENCIES} it is not supported")
        return translate.rope_parameters(theta, _llama3(header, head, theta))
    if not scaled:
        return {"rope_theta": theta, "rope_type": "default"}
    out = {"rope_theta": theta, "rope_type": kind, "factor": factor}
    if kind == "yarn":
        out["original_max_position_embeddings"] = keys.int(
            "rope.scaling.original_context_length", keys.int("context_length")
        )
        out |= {
            key: keys.float(f"rope.scaling.yarn_{key}", usual)
            for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0))
        }
        # llama.cpp's is a factor on that of the paper
        if (attention := keys.float("rope.scaling.attn_factor", 1.0)) != 1.0 and factor > 1:
            out["attention_factor"] = attention * (0.1 * math.log(factor) + 1)
    elif kind != "linear":
        keys.refuse("rope.scaling.type", "supported are none, linear and yarn")
    return out


def _llama3(header: Header, head: int, theta: float) -> RopeScaling:
    """The Llama 3 scaling whose divisors of the frequencies are rope_freqs.weight. Its two factors and the length that they are of are
    known up to one factor of all; low_freq_factor is taken as 1. InputError where there is none."""
    divisors = _numbers(header, FREQUENCIES, np.float64)
    if divisors.shape == (head // 2,) and theta > 0 and np.isfinite(divisors).all() and divisors.min() > 0.99:
        frequency = rotary_frequencies(head, theta, RopeScaling())[0]
        factor, length, high = float(divisors.max()), 8192.0, 4.0
        if factor < 1.001:
            return RopeScaling()
        kept = (1 / divisors - 1 / factor) / (
            1 - 1 / factor
        )  # = length / (high - low) * turns - low / (high - low), within 0 and 1
        turns, between = frequency / (2 * np.pi), (kept > 1e-4) & (kept < 1 - 1e-4)
        if between.sum() == 1:
            length = 3 * (kept[between][0] + 1 / 3) / turns[between][0]
        elif between.any():
            slope, least = np.linalg.lstsq(np.stack([turns[between], -np.ones(between.sum())], 1), kept[between])[0]
            length, high = slope / least, round(1 + 1 / least, 3)
        if 1 <= length < 2**31 and high > 1:
            scaling = RopeScaling("llama3", factor, round(length), 1.0, float(high))
            if np.allclose(frequency / divisors, rotary_frequencies(head, theta, scaling)[0], rtol=1e-4, atol=0):
                return scaling
    raise InputError(
        f"{header.path}: {FREQUENCIES} is no Llama 3 scaling of {head // 2} frequencies; no other is supported"
    )


def _llama(keys: _Keys, num_layers: int) -> dict:
    window, biased = keys.int("attention.sliding_window", 0), "blk.0.attn_q.bias" in keys.header.tensors
    if window:
        return _base(keys, num_layers) | dict(model_type="mistral", sliding_window=window)
    mlp_bias = "blk.0.ffn_down.bias" in keys.header.tensors
    return _base(keys, num_layers) | dict(model_type="llama", attention_bias=biased, mlp_bias=mlp_bias)


def _qwen2(keys: _Keys, num_layers: int) -> dict:
    return _base(keys, num_layers) | dict(model_type="qwen2")


def _qwen3(keys: _Keys, num_layers: int) -> dict:
    return _base(keys, num_layers) | dict(model_type="qwen3", attention_bias="blk.0.attn_q.bias" in keys.header.tensors)


def _gemma(keys: _Keys, num_layers: int, period: int, widest: int) -> dict:
    """What Gemma 2 and 3 say alike. period: the layers of which the last sees everything; widest: the layers of the model whose queries are
    scaled by the width of a layer and not of a head."""
    out = _base(keys, num_layers)
    usual = out["hidden_size"] // max(1, out["num_attention_heads"]) if num_layers == widest else out["head_dim"]
    if (scale := keys.float("attention.scale", 0.0)) and not 1e-3 < scale < 1e3:
        keys.refuse("attention.scale", REMEDY)
    full = [(i + 1) % period == 0 for i in range(num_layers)]
    return out | dict(
        sliding_window=keys.int("attention.sliding_window"),
        layer_types=["full_attention" if each else "sliding_attention" for each in full],
        query_pre_attn_scalar=round(scale**-2) if scale else usual,
        final_logit_softcapping=keys.float("final_logit_softcapping", 0.0) or None,
    )


def _gemma2(keys: _Keys, num_layers: int) -> dict:
    cap = keys.float("attn_logit_softcapping", 50.0)
    final = keys.float("final_logit_softcapping", 30.0)
    out = _gemma(keys, num_layers, 2, 46)
    return out | dict(model_type="gemma2", attn_logit_softcapping=cap or None, final_logit_softcapping=final or None)


def _gemma3(keys: _Keys, num_layers: int) -> dict:
    out = _gemma(keys, num_layers, keys.int("attention.sliding_window_pattern", 6) or num_layers + 1, 62)
    local = {"rope_theta": keys.float("rope.freq_base_swa", 10000.0), "rope_type": "default"}
    rope = {"full_attention": out["rope_parameters"], "sliding_attention": local}
    return out | dict(model_type="gemma3_text", rope_parameters=rope)


class Architecture(typing.NamedTuple):
    """`config`: of (keys, number of layers) what config.json has beside vocab_size and tie_word_embeddings. `names`: the family's."""

    config: typing.Callable[[_Keys, int], dict]
    names: dict[str, str]


ARCHITECTURES = {
    "llama": Architecture(_llama, weights.LLAMA),
    "qwen2": Architecture(_qwen2, weights.LLAMA),
    "qwen3": Architecture(_qwen3, weights.LLAMA),
    "gemma2": Architecture(_gemma2, weights.GEMMA),
    "gemma3": Architecture(_gemma3, weights.GEMMA),
    "gpt2": Architecture(_gpt2, gpt2.NAMES | {"attention.qkv": "transformer.h.{}.attn.c_attn"}),
}


# ------------------------------------------------------------------ tensors


class Tensors(formats.Tensors):
    """The tensors of a GGUF file, in Hugging Face's layouts."""

    described_by = "its metadata"

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.header, self.kinds = _read(path), {int(kind): kind for kind in library().GGML_QUANT_SIZES}
        self.keys = _Keys(self.header)
        names = ARCHITECTURES[self.keys.name].names | {"unembed": "lm_head"}
        for name in self.header.tensors:
            found = TENSOR.fullmatch(name)
            theirs = names.get(NAMES.get(found[2], "")) if found else None
            full = f"{theirs.format(found[1] and int(found[1]))}.{found[3]}" if theirs else name
            if name == FREQUENCIES:
                continue
            if full in self.file_of:
                self.wrong.append(f"{self.name_of[full]} and {name} are both {full}")
            self.file_of[full], self.name_of[full] = path, name

    def about(self, name):
        shape, kind, _ = self.header.tensors[self.name_of[name]]
        return self.kinds[kind].name, shape[::-1] if self._turned(name) else shape

    def types(self):
        return [kind.name for kind in self.kinds.values() if _turns_back(kind)]

    def read(self, name, dtype=None) -> np.ndarray:
        own = self.name_of[name]
        plus_one = self.keys.name.startswith("gemma") and own.endswith("norm.weight")
        tensor = _numbers(self.header, own, dtype or np.float32, less=float(plus_one))
        if self.keys.name == "llama" and (found := re.search(r"attn_([qk])\.", own)):
            heads = self.keys.int("attention.head_count")
            heads = heads if found[1] == "q" else self.keys.int("attention.head_count_kv", heads)
            return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        return tensor.T if self._turned(name) else tensor

    def _turned(self, name) -> bool:
        """Whether it is a matrix of GPT-2's blocks: [inputs, outputs] there."""
        return self.keys.name == "gpt2" and bool(re.search(r"\.c_(attn|proj|fc)\.weight$", name))


def _turns_back(kind) -> bool:
    """Whether the package makes numbers of a type's blocks."""
    package = library()
    try:
        package.quants.dequantize(np.zeros((1, package.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _numbers(header: Header, name: str, dtype, *, less: float = 0.0) -> np.ndarray:
    """A tensor as the file has it, less a number."""
    package, (shape, kind, first) = library(), header.tensors[name]
    block, size = next(sizes for each, sizes in package.GGML_QUANT_SIZES.items() if each == kind)
    kind, width = package.GGMLQuantizationType(kind), shape[-1] // block * size  # bytes of a row
    num, dtype = math.prod(shape), np.dtype(dtype)
    memory = np.empty(num * dtype.itemsize + ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % ALIGNMENT
    out = memory[skip : skip + num * dtype.itemsize].view(dtype).reshape(-1, shape[-1])
    step = max(1, STRIP // max(1, shape[-1]))
    with open(header.path, "rb") as file, np.errstate(all="ignore"):
        file.seek(first)
        for row in range(0, len(out), step):
            rows = out[row : row + step]
            blocks = np.fromfile(file, np.uint8, len(rows) * width).reshape(len(rows), width)
            rows[...] = package.quants.dequantize(blocks, kind) - np.float32(less)
    return out.reshape(shape)
