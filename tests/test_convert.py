"""python -m reft_jax.convert: both ways, bit for bit, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from reft_jax import convert, models
from reft_jax.data import tokenizer as tokenizers
from reft_jax.run import checkpoint
from tests import tiny

BASE = models.SHIPPED / "arithmetic_base"


def run(source, target, *more, code=0):
    assert convert.main([f"--from={source}", "--to", str(target), *more]) == code


def test_there_and_back_is_bit_equal(tmp_path, capsys):
    run(BASE, tmp_path / "ours")
    params = checkpoint.load_params(tmp_path / "ours")
    tiny.assert_trees_equal(params, models.load_hf(BASE)[1])
    run(tmp_path / "ours", tmp_path / "theirs")
    before, after = (load_file(folder / "model.safetensors") for folder in (BASE, tmp_path / "theirs"))
    assert before.keys() == after.keys() and all(x.tobytes() == after[name].tobytes() for name, x in before.items())
    assert models.read_config(tmp_path / "theirs") == models.read_config(BASE)
    assert tokenizers.load(tmp_path / "theirs").get_vocab() == tokenizers.load(BASE).get_vocab()
    generation = json.loads((tmp_path / "theirs" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizers.load(BASE).eos_token_id
    assert "differ by at most 0\n" in capsys.readouterr().out


def test_bfloat16_and_a_value_head_go_out_and_come_back(tmp_path):
    run(BASE, tmp_path / "ours", "--dtype=bfloat16")
    params = checkpoint.load_params(tmp_path / "ours")
    assert all(x.dtype == "bfloat16" for x in jax.tree.leaves(params))
    params["value_head"] = {"kernel": np.arange(128, dtype=np.float32), "bias": np.float32(2)}
    shutil.rmtree(tmp_path / "ours" / "checkpoints")
    checkpoint.write_params(tmp_path / "ours" / "checkpoints" / "7", params)
    run(tmp_path / "ours" / "checkpoints" / "7", tmp_path / "theirs", "--dtype=bfloat16")
    assert sorted(path.name for path in (tmp_path / "theirs").glob("*.safetensors")) == [
        "heads.safetensors",
        "model.safetensors",
    ]
    loaded = models.load_hf(tmp_path / "theirs", param_dtype="bfloat16")[1]
    tiny.assert_trees_equal(loaded, jax.tree.map(np.asarray, params))


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--from=x"], "--to is missing"),
        (["--from=absent", "--to=y"], "there is no such directory"),
        (["--from={base}", "--to={base}"], "is there already"),
        (["--from={base}", "--to={new}", "--dtype=int8"], "--dtype: got 'int8'"),
        (["--from={empty}", "--to={new}"], "neither a Hugging Face directory"),
        (["--form=x"], "unknown argument '--form'"),
        (["--from"], "--from needs a value"),
    ],
)
def test_what_is_refused(argv, said, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = dict(base=BASE, new=tmp_path / "new", empty=tmp_path / "empty")
    assert convert.main([word.format(**places) for word in argv]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and said in printed.err and printed.out == ""
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_away_from_its_workdir_is_refused(tmp_path, capsys):
    run(BASE, tmp_path / "ours")
    shutil.move(tmp_path / "ours" / "checkpoints", tmp_path / "alone" / "checkpoints")
    run(tmp_path / "alone", tmp_path / "new", code=2)
    assert "no tokenizer/config.json in the folders above" in capsys.readouterr().err
