"""Compiling a config for devices that are not here: what is counted, what is said, and what does not fit."""

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax import models, recipe
from reft_jax.compile import __main__ as compiler
from reft_jax.compile import hlo, measure, programs
from reft_jax.config import settings
from reft_jax.errors import InputError
from reft_jax.mesh import sharding
from reft_jax.sampling.engine import Engine
from tests import families, tiny

KEYS = (
    "function topology num_devices argument_bytes temp_bytes output_bytes hbm_bytes fits flops_per_device collectives compile_seconds"
).split()


def lines(capsys, *arguments, code=0):
    """What the command prints for the demo at toy size."""
    assert compiler.main(["--config=configs/demo.py:smoke", *arguments]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ------------------------------------------------------------------ the command


@pytest.mark.slow
def test_every_function_of_a_run_is_compiled(capsys):
    got = lines(capsys, "--topology=cpu:2", "--config.stages.reft.num_samples=2")
    assert all(set(KEYS) <= set(line) and line["fits"] and line["num_devices"] == 2 for line in got)
    names = {line["function"] for line in got}
    assert names >= {
        "warmup/sft_step",
        "reft/check/decode",
        "reft/decode",
        "reft/score",
        "reft/advantages",
        "reft/ppo_step",
    }
    assert "warmup/check/decode" not in names  # the same program, with less beside it
    step = next(line for line in got if line["function"] == "reft/ppo_step")
    assert step["collectives"]["all-reduce"]["bytes"] > 0 and step["alias_bytes"] > 0.9 * step["output_bytes"]
    assert step["largest_replicated"]["name"].endswith("kernel")  # two devices of `data` hold everything twice


@pytest.mark.slow
def test_every_function_of_self_training_and_the_reranker_is_compiled(capsys):
    assert compiler.main(["--config=tests/stages_config.py", "--topology=cpu:1"]) == 0
    got = {line["function"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert all(line["fits"] for line in got.values())
    assert got.keys() >= {"warmup/sft_step", "online/decode", "online/self_train_step", "reranker/drawn/decode"}
    assert (
        got["reranker/classifier_step"]["flops_per_device"]
        == 3 * got["reranker/classifier_score"]["flops_per_device"]
        > 0
    )


STAGE = """
import dataclasses

from reft_jax.config.settings import Checked
from reft_jax.stages.sft import run as run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(Checked):
    kind = "mine"
"""


def test_a_stage_that_does_not_say_what_it_compiles_is_an_error(tmp_path, capsys):
    """Once it was passed over, and the config was said to fit."""
    (tmp_path / "own.py").write_text(STAGE)
    (tmp_path / "spec.py").write_text(
        "from reft_jax.configs import common, demo\n\n\ndef get_config(arg=''):\n"
        "    config = demo.get_config('smoke').to_dict()\n"
        "    warmup = config['stages']['warmup']\n"
        f"    mine = dict(kind={str(tmp_path / 'own.py')!r}, **{{k: v for k, v in warmup.items() if k in ARGS}})\n"
        "    out = dict(kind='export', init_from='random')\n"
        "    return common.ordered(config | dict(stages=dict(out=out, mine=mine)))\n\n\n"
        "ARGS = ('init_from', 'epochs', 'batch_size', 'optim', 'eval_batch_size')\n"
    )
    assert compiler.main([f"--config={tmp_path / 'spec.py'}", "--topology=cpu:1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(
        f"error: config.stages.mine: a stage of kind '{tmp_path / 'own.py'}' does not say what it"
    )
    assert "programs(name, at)" in err and err.count("\n") == 1


def test_an_export_compiles_nothing_and_says_so(monkeypatch):
    config, _ = recipe.load("configs/pretrain.py:smoke")
    named = dict(config.stages)
    seen = []
    monkeypatch.setattr(programs.Lowering, "add", lambda self, name, *rest, **more: seen.append(name.partition("/")[0]))
    model = models.Model(dataclasses.replace(config.model.arch, vocab_size=300), layout=tiny.layout())
    programs.programs(config, model)
    assert list(named) == ["pretrain", "export", "evaluate"] and set(seen) == {"pretrain", "evaluate"}


@pytest.mark.slow
def test_adapters_have_a_small_state_and_no_second_copy_of_the_base(capsys):
    lora = "--config.model.lora={'rank': 2, 'alpha': 4.0, 'targets': 'attention.*'}"
    whole, adapted = lines(capsys, "--topology=cpu:1"), lines(capsys, "--topology=cpu:1", lora)
    sizes = [
        next(line for line in got if line["function"] == "reft/ppo_step")["output_bytes"] for got in (whole, adapted)
    ]
    assert sizes[1] < sizes[0] / 10


def test_what_lies_beside_a_function_is_counted_once():
    """While sampling a device holds the trained parameters, those laid out for decoding, the slots and the prompts read last."""
    layout = sharding.make_layout(settings.Mesh(1, 1, 1, tiny.RULES), jax.devices()[:1])
    model = models.Model(tiny.ARCH, layout=layout)
    places = layout.tree(models.shapes(model), models.axes(model))
    params = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), models.shapes(model), places
    )
    engine = Engine(model, max_prompt=8, max_new=8, num_slots=4, eos_ids=(0,), pad_id=0)
    found = engine.programs(params)
    laid, slots, _ = found["decode"][1][:3]
    store = found["admit"][1][1]
    size = measure.device_bytes
    weights, layer = size(params), size(params["blocks"]) // tiny.ARCH.num_layers
    assert size(laid) == weights and size(slots) > size(store) > 0
    held = {name: size(arguments) + size(beside) for name, (_, arguments, beside) in found.items()}
    assert held["relay"] - 4 == 2 * weights - layer  # one layer is its result; 4: its number
    rows = engine.prefill_rows
    assert held["prefill"] == 2 * weights + size(slots) + size(store) + 4 * rows * (8 + 1)
    assert held["admit"] == 2 * weights + size(slots) + size(store) + 5 * 4 * 4
    assert held["decode"] == 2 * weights + size(slots) + size(store)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--config=configs/demo.py"], "--topology is missing"),
        (["--topology=cpu:1"], "--config is missing"),
        (["--config=configs/demo.py", "--topology=v9z:2x2"], "'v9z:2x2'"),
        (["--config=configs/demo.py", "--topology=cpu:1", "--slices=0"], "--slices: got '0'"),
        (["--config=configs/demo.py", "--topology=cpu:1", "--nonsense=1"], "unknown argument '--nonsense'"),
        (
            ["--config=configs/demo.py", "--topology=cpu:8", "--config.mesh.tensor=3"],
            "does not multiply to the 8 devices",
        ),
        (["--config=configs/demo.py:smoke", "--topology=cpu:3"], "do not divide over data x fsdp = 3"),
    ],
)
def test_wrong_input_is_named_before_anything_is_compiled(arguments, said, capsys):
    assert compiler.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_what_does_not_fit_is_said_with_what_to_change(capsys, monkeypatch):
    monkeypatch.setattr(compiler, "devices_of", lambda *_: (jax.devices()[:1], 3_000_000))
    assert compiler.main(["--config=configs/demo.py:smoke", "--topology=cpu:1"]) == 1
    out, err = capsys.readouterr()
    small = [json.loads(line) for line in out.splitlines() if not json.loads(line)["fits"]]
    assert small and all(line["total_bytes"] > 3_000_000 for line in small)
    assert "does not fit" in err and "model.remat=block" in err and "logits_chunk (now 128)" in err


# ------------------------------------------------------------------ what is counted


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2"])
def test_flops_are_those_that_the_compiler_counts_for_one_layer(case, tmp_path):
    import transformers

    name, arguments = families.CASES[case]
    getattr(transformers, name)(**arguments).save_pretrained(tmp_path)
    arch = dataclasses.replace(
        models.read_config(tmp_path), num_layers=1, windows=(), dim=64, ffn_dim=192, vocab_size=600
    )
    model = models.Model(arch)

    def run(params, tokens):
        everything = jnp.ones(tokens.shape, bool)
        hidden, _ = models.forward(model, params, tokens, models.positions_of(everything), everything)
        return models.unembed(model, params, hidden)

    tokens = jax.ShapeDtypeStruct((4, 32), jnp.int32)
    counted = jax.jit(run).lower(models.shapes(model), tokens).compile().cost_analysis()["flops"]
    ours = programs.forward_flops(arch, 4 * 32, 32)
    assert ours == pytest.approx(counted, rel=0.1)  # the compiler also counts norms, rotations and softmax


def test_collectives_are_counted_with_the_trips_of_their_loops():
    layout = tiny.layout("data")

    def run(x):
        def body(total, row):
            return total + layout.constrain(row, "batch", None).sum(0), None

        return jax.lax.scan(body, jnp.zeros(16), x)[0]

    x = jax.ShapeDtypeStruct((5, 8, 16), jnp.float32, sharding=layout.sharding((None, "batch", None), (5, 8, 16)))
    text = jax.jit(run, out_shardings=layout.replicated).lower(x).compile().as_text()
    got = hlo.collectives(text)
    assert got == {"all-reduce": {"count": 5, "bytes": 5 * 16 * 4}}


def test_sizes_in_a_programs_text():
    assert hlo.num_bytes("f32[8,128]{1,0}") == 4096 and hlo.num_bytes("bf16[]") == 2
    assert hlo.num_bytes("(f32[4]{0}, s8[3,2]{1,0}, pred[5])") == 27
    text = """HloModule m
%body (p: (s32[])) -> (s32[]) {
  %g = f32[4,2]{1,0} all-gather(f32[1,2]{1,0} %x), dimensions={0}
}
%outer (p: (s32[])) -> (s32[]) {
  %w = (s32[]) while((s32[]) %p), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
ENTRY %main (x: f32[1,2]) -> f32[4] {
  %v = (s32[]) while((s32[]) %p), condition=%cond, body=%outer, backend_config={"known_trip_count":{"n":"2"}}
  %s = (f32[2]{0}, f32[8]{0}) all-gather-start(f32[2]{0} %y), dimensions={0}
  %d = f32[8]{0} all-gather-done((f32[2]{0}, f32[8]{0}) %s)
}
"""
    assert hlo.collectives(text) == {"all-gather": {"count": 7, "bytes": 6 * 32 + 32}}


def test_a_matrix_that_no_rule_splits_is_the_largest_replicated_buffer():
    rules = tuple((name, axes) for name, axes in tiny.RULES if name not in ("mlp", "embed"))
    for given, expected in ((tiny.RULES, None), (rules, "blocks/mlp")):
        layout = sharding.make_layout(settings.Mesh(1, 4, 2, given), jax.devices())
        model = models.Model(dataclasses.replace(tiny.ARCH, ffn_dim=64), layout=layout)
        places = layout.tree(models.shapes(model), models.axes(model))
        params = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), models.shapes(model), places
        )
        found = measure.largest_replicated((params,), 8)
        if expected is None:
            assert found["bytes"] <= 2 * 16 * 4 * 6  # norms, or a small matrix's
        else:
            assert found["name"].startswith("0/" + expected) and found["bytes"] == 2 * 16 * 64 * 4


# ------------------------------------------------------------------ the real compiler


@functools.cache
def tpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no TPU compiler here (pip install libtpu)")
    return True


@pytest.mark.slow
def test_moments_on_the_host_leave_their_bytes_on_the_chips(capsys):
    tpu()
    steps = [
        next(
            line
            for line in lines(capsys, "--topology=v5e:2x4", f"--config.mesh.moments={where}")
            if "ppo_step" in line["function"]
        )
        for where in ("device", "host")
    ]
    there, away = (step["argument_bytes"] for step in steps)
    assert away < there / 2  # parameters and two moments, or parameters alone (and the batch)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=8,fsdp=1,tensor=1", "data=2,fsdp=2,tensor=2"])
def test_the_demo_compiles_for_eight_tpus(mesh, capsys):
    tpu()
    pack = f"--config.data.pack={'tensor=2' in mesh}"
    got = lines(capsys, "--topology=v5e:2x4", pack, *(f"--config.mesh.{size}" for size in mesh.split(",")))
    assert {line["hbm_bytes"] for line in got} == {int(15.75 * compiler.GIB)} and all(line["fits"] for line in got)


@pytest.mark.parametrize("topology, num, gib", [("v4:2x2x1", 4, 30.75), ("tpu7x:2x2x1", 8, 94.74)])
def test_devices_are_as_many_as_jax_has_of_a_chip(topology, num, gib):
    """Both cores of a v4 chip are one; a TPU7x chip is two, each with half of its memory."""
    tpu()
    devices, memory = compiler.devices_of(topology)
    assert (len(devices), memory) == (num, int(gib * compiler.GIB))
    assert sharding.make_layout(settings.Mesh(1, num // 2, 2, tiny.RULES), devices).mesh.devices.size == num


def test_two_slices_lie_along_data():
    tpu()
    devices, _ = compiler.devices_of("v5e:2x2", 2)
    layout = sharding.make_layout(settings.Mesh(4, 2, 1, tiny.RULES), devices)
    slices = np.vectorize(lambda device: device.slice_index)(layout.mesh.devices)
    assert (slices == np.array([0, 0, 1, 1])[:, None, None]).all()
    with pytest.raises(InputError, match="the 2 slices here must divide it"):
        sharding.make_layout(settings.Mesh(1, 4, 2, tiny.RULES), devices)
