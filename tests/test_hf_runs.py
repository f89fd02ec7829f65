"""A Hugging Face directory through every stage, and what was trained out again as one: made models, the real path."""

import json

import jax
import numpy as np
import pytest

from reft_jax import convert, models
from reft_jax import main as main_lib
from reft_jax.config import settings
from reft_jax.data import tokenizer as tokenizers
from reft_jax.errors import InputError, Stop
from tests import runs, tiny

QUESTIONS = [
    (
        f"Tom has {a} bags with {b} pens each. How many pens does he have?",
        f"    bags = {a}\n    return bags * {b}",
        a * b,
    )
    for a in range(2, 10)
    for b in range(2, 10)
]
SHAPES = {
    "codegen": dict(
        rotary_dim=4,
        rope_interleaved=True,
        norm="layer",
        parallel=True,
        activation="gelu_tanh",
        gated=False,
        mlp_bias=True,
        unembed_bias=True,
        num_kv_heads=4,
        tie_embeddings=False,
    ),
    "gemma3_text": dict(
        norm="rms_plus_one",
        post_norms=True,
        activation="gelu_tanh",
        windows=(8, 0),
        local_rope_theta=100.0,
        qk_norm=True,
        attention_scale=0.5,
        embed_scale=4.0,
        num_kv_heads=2,
    ),
}


def make(folder, family):
    """A directory as a hub has it: weights, config.json, a byte-level tokenizer with an end and no padding token."""
    texts = [text for question, body, _ in QUESTIONS for text in (question, f"def solution():\n{body}")]
    tokenizer = tokenizers.build_bpe(texts * 2, 400)
    tokenizers.save(tokenizer, folder)
    ends = dict(eos_token_id=[tokenizer.eos_token_id, 5])  # as instruction-tuned models have it
    (folder / "generation_config.json").write_text(json.dumps(ends))
    sizes = dict(dim=32, num_layers=2, num_heads=4, head_dim=8, ffn_dim=24, rope_theta=100.0, norm_eps=1e-5)
    sizes |= dict(vocab_size=len(tokenizer) + 3, tie_embeddings=True, init_std=0.1, family=family)
    model = models.Model(settings.Arch(**(sizes | SHAPES[family])))
    models.save_hf(folder, model, models.init(model, jax.random.key(0)))
    return folder


def data_file(path):
    records = [
        dict(item_id=f"q_{i}", question=question, answer_value=float(answer), answer_cot=f"def solution():\n{body}")
        for i, (question, body, answer) in enumerate(QUESTIONS)
    ]
    path.write_text(json.dumps(records))
    return path


def spec_of(model, file):
    return f"configs/reft.py:smoke,data=svamp,cot=program,model={model},train_file={file},test_file={file}"


def test_what_the_files_say_of_ids_reaches_the_run(tmp_path):
    model, file = make(tmp_path / "x?y 100%", "codegen"), data_file(tmp_path / "train.json")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | dict(eos_token_id=6)))
    flags = [f"--config={spec_of(model, file)}", "--config.data.max_overlap=1.0"]
    run, about = main_lib.prepare([*flags, f"--workdir={tmp_path / 'run'}"], Stop())
    assert run.eos_ids == (1, 5, 6) and about["tokenizer"]["more_eos_ids"] == (5, 6)
    assert run.model.num_ids == len(run.tokenizer) == run.model.arch.vocab_size - 3 == run.tuned.num_ids
    records = json.loads(file.read_text())
    records[3]["answer_cot"] += "  # m²"
    file.write_text(json.dumps(records))
    state = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(state | dict(normalizer=dict(type="NFKC"))))
    with pytest.raises(InputError, match=rf"'²' \(U\+00B2\) becomes '2'; the first are of q_3 \({file}:1\)"):
        main_lib.prepare([*flags, f"--workdir={tmp_path / 'new'}"], Stop())


@pytest.mark.slow
def test_every_stage_runs_on_a_directory_and_transformers_loads_what_comes_out(tmp_path):
    model = make(tmp_path / "model", "gemma3_text")
    file = data_file(tmp_path / "train.json")
    workdir = runs.run(tmp_path / "run", "--config.data.max_overlap=1.0", spec=spec_of(model, file))
    stages = json.loads((workdir / "results.json").read_text())["stages"]
    assert set(stages) == {"warmup", "sft", "reft"}
    about = json.loads((workdir / "config.json").read_text())
    assert about["tokenizer"]["eos_token"] == "<eos>" and about["tokenizer"]["more_eos_ids"] == [5]
    assert not any(
        None in line["tokens"] for line in runs.lines(workdir / "reft" / "samples.jsonl")
    )  # rows without a token
    lines = runs.lines(workdir / "reft" / "metrics.jsonl")
    assert lines[1]["ppo/first_ratio_error"] < 1e-4 and lines[1]["sample/logp_gap_max"] < 1e-3

    out = tmp_path / "out"
    assert convert.main([f"--from={workdir / 'reft'}", f"--to={out}"]) == 0
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 5]
    ours, params = models.load_hf(out)
    assert set(params) - set(models.shapes(ours)) == {"value_head"}
    before = models.load_hf(model)[1]
    assert np.abs(np.asarray(params["embed"]["kernel"]) - before["embed"]["kernel"]).max() > 0  # it was trained

    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer("Question:\nTom has 3 bags", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    got = np.asarray(models.logits(ours, params, np.asarray([ids], np.int32)))[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_export_stage_merges_adapters_and_says_how_near_a_reload_is(tmp_path):
    spec = tmp_path / "spec.py"
    spec.write_text(
        "from reft_jax.configs import common, demo\n\n\n"
        "def get_config(arg=''):\n"
        "    config = demo.get_config(arg).to_dict()\n"
        "    stages = dict(warmup=config['stages']['warmup'], out=dict(kind='export', init_from='warmup'))\n"
        "    model = config['model'] | dict(lora=common.lora(4))\n"
        "    return common.ordered(config | dict(model=model, stages=stages))\n"
    )
    workdir = runs.run(tmp_path / "run", spec=f"{spec}:smoke")
    assert json.loads((workdir / "out" / "DONE").read_text())["max_logit_error"] == 0.0
    _, merged = models.load_hf(workdir / "out" / "hf")
    _, base = models.load_hf(models.resolve("arithmetic_base"))
    tiny.assert_trees_equal(merged["embed"], base["embed"])
    moved = np.abs(np.asarray(merged["blocks"]["mlp"]["up"]["kernel"]) - base["blocks"]["mlp"]["up"]["kernel"]).max()
    assert 1e-4 < moved < 1
    assert convert.main([f"--from={workdir / 'warmup'}", f"--to={tmp_path / 'x'}"]) == 2  # adapters alone
