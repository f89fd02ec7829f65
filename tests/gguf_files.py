"""Tiny GGUF files, written with the package gguf as llama.cpp's converter writes them, from transformers' random models."""

import gguf
import numpy as np

from tests import families

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}  # GGUF's names where they are others
# A vocabulary of as many tokens as the models of `families` have: three special ones, letters, words, and a digit
WORDS = ["<unk>", "<s>", "</s>", *"▁tomhaspend0x\n"]
WORDS += ["▁t", "om", "▁tom", "ha", "has", "▁has", "pe", "pen", "▁pen", "s▁", "ed", "ta", "x0", "▁▁"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece(writer, words=tuple(WORDS), user_defined=()):
    """SentencePiece's keys: letters and words of ever lower scores."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(words))
    writer.add_token_scores([float(-i) for i in range(len(words))])
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3} | dict.fromkeys(user_defined, 4) | dict.fromkeys(BYTES, 6)
    writer.add_token_types([kinds.get(word, 1) for word in words])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def permuted(tensor: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of Llama's queries and keys."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def keys_of(config, writer):
    """The architecture's keys of a transformers config."""
    if config.model_type == "gpt2":
        writer.add_context_length(config.n_positions)
        writer.add_embedding_length(config.n_embd)
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if head * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head)
        writer.add_value_length(head)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "llama3":
        from reft_jax.config.settings import RopeScaling
        from reft_jax.models.rotary import rotary_frequencies

        names = dict(original_max_position_embeddings="original_max_positions", rope_type="kind", rope_theta=None)
        scaling = RopeScaling(**{names.get(key, key): value for key, value in rope.items() if names.get(key, key)})
        plain, scaled = (rotary_frequencies(head, rope["rope_theta"], each)[0] for each in (RopeScaling(), scaling))
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    elif rope["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.model_type.startswith("gemma") or config.model_type == "mistral" and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if (
        config.model_type == "gemma3_text"
        and (local := config.rope_parameters["sliding_attention"]["rope_theta"]) != 10000
    ):
        writer.add_float32("gemma3.rope.freq_base_swa", local)
    if config.model_type.startswith("gemma") and config.query_pre_attn_scalar != head:
        writer.add_attention_scale(config.query_pre_attn_scalar**-0.5)


def tensors_of(model, architecture: str):
    """(name, float32) of each tensor, as the converter changes it."""
    kind = {"gpt2": gguf.MODEL_ARCH.GPT2}.get(architecture) or next(
        kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture
    )
    config = model.config
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, suffix = name.rsplit(".", 1)
        tensor = value.float().numpy()
        if architecture == "gpt2" and suffix == "weight" and stem.endswith(("c_attn", "c_proj", "c_fc")):
            tensor = tensor.T
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            tensor = permuted(tensor, config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads)
        if architecture.startswith("gemma") and stem.endswith("norm"):
            tensor = tensor + np.float32(1)
        yield f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(tensor)


def write(path, model, kinds=lambda name, tensor: "F32", more=None, vocabulary=sentencepiece):
    """A model's file. kinds: of (name, tensor) the type to store it as; more: of the writer, further keys and tensors.
    vocabulary: of the writer, the tokenizer's keys."""
    architecture = ARCHITECTURES.get(model.config.model_type, model.config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(model.config.num_hidden_layers)
    keys_of(model.config, writer)
    vocabulary(writer)
    for name, tensor in tensors_of(model, architecture):
        kind = gguf.GGMLQuantizationType[kinds(name, tensor)]
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    if more:
        more(writer)
    finish(writer)
    return path


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def turned_back(tensor: np.ndarray, kind) -> np.ndarray:
    """What a type keeps of a matrix."""
    return gguf.quants.dequantize(gguf.quants.quantize(tensor, kind), kind)


def of_case(path, case: str, **options):
    """The file of one of `families.CASES`, and transformers' model."""
    model = families.theirs(case)
    return write(path, model, **options), model


def in_float32(header, path, numbers):
    """A file of what a header says and of the same numbers, each in float32. numbers: of (header, name, dtype) a tensor's."""
    writer = gguf.GGUFWriter(path, header.metadata["general.architecture"])
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in header.metadata.items():
        if type(value) in adders and key != "general.architecture":
            adders[type(value)](key, value)
        elif type(value) not in adders:
            writer.add_array(key, [each.decode() if isinstance(each, bytes) else each.item() for each in value])
    for name in header.tensors:
        writer.add_tensor(name, numbers(header, name, np.float32))
    finish(writer)
    return path
