"""python -m reft_jax.convert: both ways, bit for bit, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from reft_jax import convert, models
from reft_jax.data import tokenizer as tokenizers
from reft_jax.errors import InputError
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


def test_a_checkpoint_of_no_numbers_is_refused(tmp_path):
    params = {"norm": {"scale": np.ones(3)}, "blocks": {"up": np.array([1, np.inf, np.nan, np.nan], np.float32)}}
    checkpoint.write_params(tmp_path / "0", params)
    with pytest.raises(InputError, match=f"{tmp_path / '0'}: blocks.up holds 2 NaN and 1 infinite of 4 numbers"):
        checkpoint.load_params(tmp_path / "0")


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--from=x"], "--to is missing"),
        (["--from=absent", "--to=y"], "there is no such directory"),
        (["--from={base}", "--to={base}"], "is there already"),
        (["--from={base}", "--to={new}", "--dtype=int8"], "--dtype: got 'int8'"),
        (["--from={empty}", "--to={new}"], "neither a Hugging Face directory"),
        (["--form=x"], "unknown argument '--form'; did you mean '--from'?"),
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


@pytest.mark.parametrize("name", ["c[1]", "a\\b", "**"])
def test_any_folder_s_name_will_do(name, tmp_path):
    run(BASE, tmp_path / name / "ours")
    run(tmp_path / name / "ours", tmp_path / name / "theirs")
    before, after = (load_file(folder / "model.safetensors") for folder in (BASE, tmp_path / name / "theirs"))
    assert all(x.tobytes() == after[key].tobytes() for key, x in before.items())


def test_what_is_no_checkpoint_is_said_before_anything_is_written(tmp_path, capsys):
    def said(source):
        run(source, tmp_path / "new", code=2)
        assert not (tmp_path / "new").exists()
        printed = capsys.readouterr().err
        assert printed.startswith(f"error: --from={source}") or str(source) in printed.partition(" ")[2]
        return printed

    run(BASE, tmp_path / "run" / "sft")
    (tmp_path / "run" / "config.json").write_text('{"config": {}}')  # a run's, not a model's
    capsys.readouterr()
    assert "the folder of a whole run; name the folder of one of its stages that have a checkpoint: sft" in said(
        tmp_path / "run"
    )
    stage = tmp_path / "run" / "sft"
    (stage / "DONE").write_text(json.dumps(dict(selected_step=7, last_step=8)))
    assert f"{stage}/checkpoints/7: the checkpoint that the finished stage sft chose is gone" in said(stage)
    (stage / "DONE").unlink()
    (stage / "checkpoints" / "0").rename(stage / "checkpoints" / "0.making")
    assert "whose writing was interrupted" in said(stage / "checkpoints" / "0.making")
    assert "no complete checkpoint" in said(stage)
    (stage / "checkpoints" / "0.making").rename(stage / "checkpoints" / "0")
    data = max((stage / "checkpoints").rglob("d/*"), key=lambda path: path.stat().st_size)
    whole = data.read_bytes()
    data.write_bytes(whole[:1000] + bytes([whole[1000] ^ 4]) + whole[1001:])
    assert f"{data} is damaged" in said(stage)


def test_a_checkpoint_away_from_its_workdir_is_refused(tmp_path, capsys):
    run(BASE, tmp_path / "ours")
    shutil.move(tmp_path / "ours" / "checkpoints", tmp_path / "alone" / "checkpoints")
    run(tmp_path / "alone", tmp_path / "new", code=2)
    assert "no tokenizer/config.json in the folders above" in capsys.readouterr().err
