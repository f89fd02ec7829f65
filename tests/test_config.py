"""Config files and flags: every legal combination builds, and everything else is refused with the key and what is legal."""

import copy
import dataclasses
import difflib
import itertools
import pathlib
import typing

import ml_collections
import pytest

from reft_jax import recipe
from reft_jax.config import settings as settings_lib
from reft_jax.errors import InputError

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
FILES = dict(train_file=["train.json"], test_file=["", "test.json"])
REAL = dict(
    data=["svamp", "gsm8k", "mathqa", "mathqa-numeric"],
    cot=["program", "nl"],
    model=["tiny", "small", "demo", "some/directory"],
    smoke=[False, True],
    **FILES,
)
GENERATED = REAL | dict(data=["arithmetic"], train_file=[""], test_file=[""])
# What each config file can be asked for: a list of grids of legal arguments. A new file must be added here.
ARGUMENTS = {
    "common": [],
    "demo": [
        dict(annotations=["diverse", "canonical", "worked"], cot=["program", "nl"], seed=[0, 3], smoke=[False, True])
    ],
    "paper_small": [
        dict(
            cot=["program", "nl"],
            style=["diverse", "canonical"],
            seed=[2],
            methods=["", "sft+grpo"],
            smoke=[False, True],
        )
    ],
    "paper_text": [
        dict(
            cot=["program", "nl"],
            base=["some/directory"],
            seed=[2],
            methods=["", "sft+grpo"],
            smoke=[False, True],
            train_file=["train.json"],
            test_file=["test.json"],
        ),
        dict(cot=["program", "nl"], smoke=[True]),
    ],
    "pretrain_text": [
        dict(
            cot=["program", "nl"],
            num_train=[1000, 300_000],
            model=["words", "tiny"],
            questions_file=["", "train.json"],
            smoke=[False, True],
        )
    ],
    "pretrain": [dict(seed=[0, 1], num_train=[1000, 120_000], smoke=[False, True])],
    "sft": [REAL, GENERATED],
    "reft": [REAL, GENERATED],
    "paper": [
        dict(
            row=["main/codellama_7b/gsm8k/nl/reft"],
            variant=["paper", "script"],
            train_file=["train.json"],
            test_file=["test.json"],
            model_dir=["", "d"],
            runs=["", "R"],
        )
    ],
}


def spec(name, **arguments):
    return f"{CONFIGS / name}.py:" + ",".join(f"{key}={value}" for key, value in arguments.items())


def demo_tree():
    return recipe.load(spec("demo", smoke=True))[1]


def real_tree():
    return recipe.load(spec("reft", train_file="train.json", test_file="test.json"))[1]


def refused(tree) -> str:
    with pytest.raises(InputError) as caught:
        recipe.build(tree)
    return str(caught.value)


# ------------------------------------------------------------------ files and their arguments


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "models"))
def test_every_legal_combination_of_arguments_builds(name):
    for grid in ARGUMENTS[name]:
        for values in itertools.product(*grid.values()):
            arguments = dict(zip(grid, values, strict=True))
            config, tree = recipe.load(spec(name, **arguments))
            assert hash(config) == hash(recipe.build(tree))  # frozen all the way down, and a function of the tree
            assert config.data.cot == arguments.get("cot", config.data.cot)
            assert config.data.train_file == arguments.get("train_file", "")


def test_recipe_has_the_stages_that_users_rely_on():
    for name in ("demo", "reft"):
        config, _ = recipe.load(spec(name, train_file="t.json") if name == "reft" else spec(name))
        assert [stage for stage, _ in config.stages] == ["warmup", "sft", "reft", "evaluate"]
        assert dict(config.stages)["sft"].init_from == dict(config.stages)["reft"].init_from == "warmup"


def test_smoke_alone_means_true():
    assert recipe.load(f"{CONFIGS / 'demo.py'}:smoke") == recipe.load(f"{CONFIGS / 'demo.py'}:smoke=True")
    assert recipe.load(f"{CONFIGS / 'demo.py'}:smoke")[0] != recipe.load(f"{CONFIGS / 'demo.py'}")[0]


@pytest.mark.parametrize(
    "name, argument, parts",
    [
        ("demo", "sead=1", ["sead", "seed", "annotations"]),
        ("demo", "seed=one", ["seed", "'one'", "int"]),
        ("demo", "seed", ["seed", "int"]),
        ("demo", "smoke=maybe", ["smoke", "'maybe'", "True or False"]),
        ("demo", "cot=prose", ["cot", "'prose'", "program", "nl"]),
        ("demo", "annotations=messy", ["annotations", "'messy'", "diverse", "canonical", "worked"]),
        ("demo", "seed=-1", ["seed", "-1", ">= 0"]),
        ("reft", "data=gsm9k", ["gsm9k", "gsm8k", "svamp", "mathqa-numeric"]),
        ("reft", "data=svamp,cot=prose,train_file=t.json", ["prose", "program", "nl"]),
        ("reft", "data=svamp", ["train_file"]),
        ("sft", "model=,train_file=t.json", ["model"]),
    ],
)
def test_wrong_arguments_say_what_is_legal(name, argument, parts):
    with pytest.raises(InputError) as caught:
        recipe.load(f"{CONFIGS / name}.py:{argument}")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text, parts",
    [
        (None, ["no file", "x.py"]),
        ("def get_config(arg=''):\n    return 1 +\n", ["invalid syntax", "line 2"]),
        ("value = 1\n", ["get_config"]),
        ("import no_such_module\n", ["no_such_module"]),
        (
            "from configs import common\n\n\ndef get_config(arg=''):\n    return common.arithmetik(arg)\n",
            ["arithmetik"],
        ),
        (
            "from configs import common\n\n\ndef get_config(arg=''):\n    return common.config(seed=0, model=common.PRESETS['tinny'])\n",
            ["tinny"],
        ),
        ("def get_config(arg=''):\n    return None\n", ["ConfigDict"]),
        ("def get_config(arg=''):\n    return 1 / 0\n", ["division by zero"]),
    ],
)
def test_config_files_that_cannot_be_used(tmp_path, text, parts):
    path = tmp_path / "x.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as caught:
        recipe.load(str(path))
    for part in ["--config", *parts]:
        assert part in str(caught.value)


def test_a_users_config_with_sorted_keys_is_told_why(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import ml_collections\nfrom configs import demo\n\n\ndef get_config(arg=''):\n"
        "    return ml_collections.ConfigDict(demo.get_config('smoke').to_dict())\n"
    )
    with pytest.raises(InputError) as caught:
        recipe.load(str(path))
    message = str(caught.value)
    assert "config.stages.evaluate" in message and "stages run in order" in message and "sort_keys=False" in message


# ------------------------------------------------------------------ keys


def groups(cls, value, path="config"):
    """(path, dict, dataclass) of every group of settings in a config tree."""
    yield path, value, cls
    hints = typing.get_type_hints(cls)
    for name, kind in hints.items():
        here = f"{path}.{name}"
        if name == "stages":
            for stage, settings in value[name].items():
                yield from groups(settings_lib.KINDS[settings["kind"]], settings, f"{here}.{stage}")
        elif type(None) in typing.get_args(kind):
            if value[name] is not None:
                yield from groups(typing.get_args(kind)[0], value[name], here)
        elif dataclasses.is_dataclass(kind):
            yield from groups(kind, value[name], here)


def at(tree, path):
    for key in path.split(".")[1:]:
        tree = tree[key]
    return tree


GROUPS = [path for path, _, _ in groups(settings_lib.Config, real_tree())]


@pytest.mark.parametrize("path", GROUPS)
def test_unknown_key_at_any_depth_names_the_nearest(path):
    key = list(at(real_tree(), path))[-1]
    tree = real_tree()
    at(tree, path)[key + "x"] = at(tree, path)[key]  # beside the right key, so that nothing else is wrong
    if path == "config.stages":
        return  # names of stages are free
    message = refused(tree)
    nearest = difflib.get_close_matches(key + "x", list(at(real_tree(), path)), n=1)[0]
    assert message.startswith(f"{path}.{key}x: unknown key; did you mean {nearest!r}?")


@pytest.mark.parametrize("path", GROUPS)
def test_missing_keys_are_named(path):
    (cls,) = [cls for here, _, cls in groups(settings_lib.Config, real_tree()) if here == path]
    optional = {f.name for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    for key in list(at(real_tree(), path)):
        if key in optional:  # an Arch is a Llama, a model without adapters, unless it says otherwise
            tree = real_tree()
            del at(tree, path)[key]
            recipe.build(tree)
            continue
        tree = real_tree()
        del at(tree, path)[key]
        message = refused(tree)
        assert path in message and key in message


def test_unknown_logical_axis_names_the_nearest():
    tree = demo_tree()
    tree["mesh"]["rules"]["embedd"] = tree["mesh"]["rules"].pop("embed")
    message = refused(tree)
    assert message.startswith("config.mesh.rules.embedd: unknown") and "'embed'" in message


# ------------------------------------------------------------------ types and ranges


def leaves(tree):
    """(path of the group, key, type, metadata) of every setting with a plain type."""
    for path, _, cls in groups(settings_lib.Config, tree):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if hints[field.name] in (int, float, str, bool, tuple[int, ...], tuple[str, ...]) and field.metadata:
                yield path, field.name, hints[field.name], field.metadata


LEAVES = sorted(
    {
        (path, key): (path, key, kind, meta)
        for tree in (real_tree(), demo_tree())
        for path, key, kind, meta in leaves(tree)
    }.values(),
    key=lambda leaf: leaf[:2],
)


def broken(path, key, value):
    """The message for config.<path>.<key> = value, in a config that has that key."""
    tree = real_tree()
    at(tree, path)[key] = value
    return refused(tree)


@pytest.mark.parametrize("path, key, kind, meta", LEAVES, ids=[f"{path}.{key}" for path, key, _, _ in LEAVES])
def test_wrong_types_and_ranges_name_the_key_and_the_value(path, key, kind, meta):
    wrong = {
        int: ["7", 1.5, True, None, {}],
        float: ["7", True, None, float("nan"), float("inf")],
        str: [1, None, True],
        bool: [1, 0, "True", None],
        tuple[int, ...]: [8, "8", (8.0,), ("8",), None]
        + ([()] if key not in ("windows", "forbidden", "profile_steps") else []),
        tuple[str, ...]: [8, "8", (8,), None],
    }[kind]
    if meta["low"] is not None:
        wrong.append((meta["low"] - 1,) if kind == tuple[int, ...] else kind(meta["low"] - 1))
    if meta["high"] is not None:
        wrong.append(kind(meta["high"] + 1))
    if meta["above"] is not None:
        wrong.append(kind(meta["above"]))
    if meta["one_of"] is not None:
        wrong.append("nonsense")
    for value in wrong:
        message = broken(path, key, value)
        assert message.startswith(f"{path}.{key}"), (value, message)
        shown = value[0] if isinstance(value, tuple) and value else value
        assert repr(shown) in message, (value, message)


def test_ranges_tell_the_limit_and_choices_the_nearest():
    assert broken("config.stages.sft", "dropout", 0.95).endswith("it must be <= 0.9")
    assert broken("config.stages.sft", "batch_size", 0).endswith("it must be >= 1")
    assert broken("config.stages.reft.optim", "lr", 0.0).endswith("it must be > 0")
    assert "did you mean 'svamp'? legal are arithmetic, gsm8k, svamp" in broken("config.data", "name", "swamp")
    assert "did you mean 'reft'?" in broken("config.stages.reft", "kind", "reftt")


def test_integers_serve_as_floats():
    tree = demo_tree()
    tree["stages"]["reft"]["epochs"] = 2
    epochs = dict(recipe.build(tree).stages)["reft"].epochs
    assert epochs == 2.0 and isinstance(epochs, float)


@pytest.mark.parametrize("value", [5, "x", None, []])
@pytest.mark.parametrize(
    "path",
    [
        "config.data",
        "config.mesh.rules",
        "config.stages",
        "config.stages.reft",
        "config.stages.reft.ppo",
        "config.stages.evaluate.checkpoints",
    ],
)
def test_a_value_in_place_of_a_group(path, value):
    parent, _, key = path.rpartition(".")
    message = broken(parent, key, value)
    assert path in message


@pytest.mark.parametrize("axes", ["data", 5, None, ["rows"], [["data"]]])
def test_rules_hold_tuples_of_mesh_axes(axes):
    message = broken("config.mesh.rules", "embed", axes)
    assert message.startswith("config.mesh.rules.embed") and "data, fsdp, tensor" in message


def test_a_model_is_either_read_or_new():
    tree = demo_tree()
    tree["model"]["directory"] = ""
    assert "config.model" in refused(tree)  # neither a directory nor an architecture
    tree = real_tree()
    tree["model"]["directory"] = "somewhere"
    assert "not both" in refused(tree)


# ------------------------------------------------------------------ what must fit together


@pytest.mark.parametrize(
    "path, value, parts",
    [
        ("stages.reft.ppo.minibatch_size", 7, ["7", "divide batch_size x num_samples = "]),
        ("stages.reft.ppo.accumulate", 7, ["7", "divide"]),
        ("stages.sft.accumulate", 7, ["7", "divide batch_size = "]),
        ("stages.warmup.init_from", "sft", ["'sft'", "stages run in order", "sort_keys=False"]),
        ("stages.warmup.init_from", "warmup", ["'warmup'", "comes no earlier"]),
        ("stages.reft.init_from", "evaluate", ["'evaluate'", "comes no earlier"]),
        ("stages.evaluate.checkpoints", {"itself": "evaluate"}, ["evaluate.itself", "comes no earlier"]),
        ("stages.sft.init_from", "random", ["continue_run", "earlier sft stage"]),
        ("stages.warmup.continue_run", True, ["continue_run", "'random'"]),
        ("stages.reft.sampling.temperature", 0.7, ["sampling", "temperature 1"]),
        ("stages.reft.sampling.top_k", 5, ["sampling", "top_k 0", "correction", "importance_cap"]),
        ("stages.reft.sampling.min_p", 0.1, ["sampling: got min_p=0.1"]),
        ("stages.reft.sampling.temperature", 0.0, ["sampling.temperature: got 0.0", "> 0"]),
        ("stages.reft.sampling.max_new", 257, ["sampling.max_new: got 257", "max_response = 256"]),
        ("stages.evaluate.sampling.min_new", 300, ["sampling.min_new: got 300", "256"]),
        ("stages.evaluate.sampling.stop", ("",), ["sampling.stop", "empty string"]),
        ("stages.evaluate.sampling.stop", (3,), ["sampling.stop", "type str"]),
        ("stages.reft.optim.warmup", 0.5, ["optim.hold", "warmup = 0.5"]),
        ("stages.sft.optim.schedule_epochs", 1.0, ["schedule_epochs", "it must cover epochs = "]),
        ("data.dev_size", 0, ["select_on", "dev_size"]),
        ("data.source", "generated", ["config.data.source", "'svamp'"]),
        ("data.prompt_buckets", (64, 32, 256), ["prompt_buckets", "rise"]),
        ("data.response_buckets", (64, 128), ["response_buckets", "max_response = 256"]),
        ("data.response_buckets", (64, 64, 256), ["response_buckets", "rise"]),
        ("mesh.data", 0, ["config.mesh", "data=0"]),
        ("mesh.fsdp", -1, ["config.mesh", "at most one is -1"]),
        ("model.arch.num_kv_heads", 7, ["num_kv_heads", "divide num_heads"]),
        ("model.arch.head_dim", 31, ["head_dim", "even"]),
        ("seed", 2**31, ["config.seed", "2147483647"]),
    ],
)
def test_settings_that_do_not_fit_together(path, value, parts):
    parent, _, key = path.rpartition(".")
    message = broken(f"config.{parent}".rstrip("."), key, value)
    for part in parts:
        assert part in message


def test_stage_names_are_folder_names():
    for name in ("../up", "a b", "", "sft/2"):
        tree = real_tree()
        tree["stages"] = {name if key == "sft" else key: value for key, value in tree["stages"].items()}
        tree["stages"]["evaluate"]["checkpoints"] = {"reft": "reft"}
        assert "stage's name" in refused(tree)


@pytest.mark.parametrize("label", ["../up", "..", "", "x/y"])
def test_labels_of_an_evaluation_are_folder_names(label):
    assert label in broken("config.stages.evaluate", "checkpoints", {label: "reft"})


@pytest.mark.parametrize("name", ["tokenizer", "plots"])
def test_a_stage_cannot_take_the_runs_own_folders(name):
    tree = demo_tree()
    tree["stages"] = {name if key == "sft" else key: value for key, value in tree["stages"].items()}
    tree["stages"]["evaluate"]["checkpoints"] = {"reft": "reft"}
    assert name in refused(tree)


def test_two_evaluations_cannot_share_a_label():
    tree = demo_tree()
    tree["stages"]["again"] = copy.deepcopy(tree["stages"]["evaluate"])  # the second would find the first's results
    message = refused(tree)
    assert "config.stages.again.checkpoints" in message and "base" in message


# ------------------------------------------------------------------ overrides


LONGEST = demo_tree()["data"]["max_prompt"]


def overridden(path, text):
    return recipe.load(spec("demo", smoke=True), [(path, text)])


@pytest.mark.parametrize(
    "path, text, expected",
    [
        ("seed", "7", 7),
        ("data.docstring", "True", True),
        ("data.docstring", "true", True),
        ("data.docstring", "0", False),
        ("data.num_train", "128", 128),
        ("stages.reft.epochs", "7.68", 7.68),
        ("stages.reft.epochs", "3", 3.0),
        ("stages.reft.optim.lr", "1e-4", 1e-4),
        ("stages.reft.save_every", "5", 5),
        ("data.prompt_buckets", f"(8, {LONGEST})", (8, LONGEST)),
        ("data.prompt_buckets", f"[8,{LONGEST}]", (8, LONGEST)),
        ("data.train_file", "", ""),
        ("data.train_file", "True", "True"),
        ("data.train_file", "3", "3"),
        ("stages.evaluate.checkpoints.base", "random", "random"),
        ("mesh.data", "-1", -1),
    ],
)
def test_overrides_take_the_type_of_the_key(path, text, expected):
    record, tree = overridden(path, text)
    value = at(tree, f"config.{path}")
    assert (tuple(value) if isinstance(value, list) else value) == expected and isinstance(value, bool) == isinstance(
        expected, bool
    )
    node = record
    for key in path.split("."):
        node = dict(node)[key] if isinstance(node, tuple) else getattr(node, key)
    assert node == expected and type(node) is type(expected)


def test_a_key_that_is_none_takes_none():
    record, _ = recipe.load(spec("demo"), [("model.arch", "None")])
    assert record.model.arch is None
    with pytest.raises(InputError, match=r"config\.model\.arch: got 5"):
        recipe.load(spec("demo"), [("model.arch", "5")])


@pytest.mark.parametrize(
    "path, text, parts",
    [
        ("sede", "1", ["config.sede", "did you mean 'seed'?"]),
        ("stages.reft.optim.lrr", "1", ["config.stages.reft.optim.lrr", "did you mean 'lr'?"]),
        ("stages.ref.epochs", "1", ["config.stages.ref", "did you mean 'reft'?"]),
        ("stages.reft.epochs.x", "1", ["config.stages.reft.epochs.x", "unknown"]),
        ("stages.reft.ppo", "1", ["config.stages.reft.ppo", "group", "minibatch_size"]),
        ("stages.reft", "None", ["config.stages.reft", "group"]),
        ("seed", "one", ["config.seed", "'one'", "int"]),
        ("seed", "1.5", ["config.seed", "'1.5'", "int"]),
        ("seed", "True", ["config.seed", "'True'", "int"]),
        ("seed", "None", ["config.seed", "'None'", "int"]),
        ("stages.reft.epochs", "True", ["config.stages.reft.epochs", "'True'", "float"]),
        ("stages.reft.epochs", "1e999", ["config.stages.reft.epochs"]),
        ("stages.reft.epochs", "nan", ["config.stages.reft.epochs", "nan"]),
        ("stages.reft.epochs", "1+1", ["config.stages.reft.epochs", "1+1"]),
        ("stages.reft.epochs", "(1", ["config.stages.reft.epochs", "(1"]),
        ("data.docstring", "yes", ["config.data.docstring", "'yes'", "True or False"]),
        ("data.prompt_buckets", "56", ["config.data.prompt_buckets", "'56'", "tuple"]),
        ("data.prompt_buckets", "(56.0,)", ["config.data.prompt_buckets", "56.0", "int"]),
        ("stages.reft.batch_size", "0", ["config.stages.reft.batch_size", ">= 1"]),
        ("", "1", ["config."]),
    ],
)
def test_wrong_overrides(path, text, parts):
    with pytest.raises(InputError) as caught:
        overridden(path, text)
    for part in parts:
        assert part in str(caught.value)


def test_later_overrides_win_and_the_file_is_left_alone():
    record, _ = recipe.load(spec("demo"), [("seed", "1"), ("seed", "2")])
    assert record.seed == 2 and recipe.load(spec("demo"))[0].seed == 0


def test_override_works_on_a_locked_config():
    config = ml_collections.ConfigDict({"a": {"b": 1}}).lock()
    recipe.override(config, "a.b", "2")
    assert config.a.b == 2 and config.is_locked


def test_a_preset_spells_out_what_an_arch_takes_for_granted():
    """configs/models.py and reft_jax/config/settings.py each have the defaults: they must be the same ones."""
    record, tree = recipe.load(spec("sft", data="arithmetic", model="tiny"))
    arch = tree["model"]["arch"]
    assert set(arch) == {field.name for field in dataclasses.fields(settings_lib.Arch)}
    required = {f.name: arch[f.name] for f in dataclasses.fields(settings_lib.Arch) if f.default is dataclasses.MISSING}
    assert settings_lib.Arch(**required) == record.model.arch


@pytest.mark.parametrize(
    "lora, base, said",
    [
        ("{'rank': 0, 'alpha': 1.0, 'targets': '.*'}", "full", "lora.rank: got 0; it must be >= 1"),
        ("{'rank': 2, 'alpha': 1.0, 'targets': '('}", "full", "not a regular expression"),
        ("{'rank': 2, 'alpha': 1.0}", "full", "missing targets"),
        ("None", "int4", "only the frozen base under adapters is quantized"),
        ("None", "int3", "base: got 'int3'; did you mean 'int8'? legal are full, int8, int4, nf4"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(lora, base, said):
    with pytest.raises(InputError) as caught:
        recipe.load(spec("demo"), [("model.lora", lora), ("model.base", base)])
    assert said in str(caught.value)
