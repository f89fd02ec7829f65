"""Config files and flags: every legal combination builds, and everything else is refused with the key and what is legal."""

import copy
import dataclasses
import difflib
import functools
import hashlib
import importlib
import itertools
import json
import pathlib
import re
import sys

import pytest

from reft_jax import main as main_lib
from reft_jax import prepare, recipe, tasks
from reft_jax.advantages import gae, rloo
from reft_jax.config import choices, records, renamed
from reft_jax.config import settings as settings_lib
from reft_jax.configs import common, demo
from reft_jax.errors import InputError, Stop
from reft_jax.losses import nll, own_gold, policy
from reft_jax.losses.kl import KL
from reft_jax.losses.value import Critic
from reft_jax.rewards.terms import partial, right
from reft_jax.run import workdirs
from tests import runs

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


@functools.cache
def _loaded(text):
    return recipe.load(text)[1]


def demo_tree():
    return copy.deepcopy(_loaded(spec("demo", smoke=True)))


def real_tree():
    return copy.deepcopy(_loaded(spec("reft", train_file="train.json", test_file="test.json")))


def stages_tree():
    """A config with a stage of self-training in both modes, and a re-ranker."""
    return copy.deepcopy(_loaded(str(runs.ROOT / "tests/stages_config.py")))


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
        ("sft", "model=,train_file=t.json", ["model"]),
    ],
)
def test_wrong_arguments_say_what_is_legal(name, argument, parts):
    with pytest.raises(InputError) as caught:
        recipe.load(f"{CONFIGS / name}.py:{argument}")
    for part in parts:
        assert part in str(caught.value)


def test_files_that_are_not_named_are_asked_for_where_they_are_read():
    config, _ = recipe.load(spec("reft", data="svamp"))
    with pytest.raises(InputError, match="config.data.train_file: got ''; svamp is read from files"):
        tasks.load(config.data)
    chosen = ("stages.sft.select_on", "test")
    with pytest.raises(
        InputError, match=r"config\.stages\.sft\.select_on: got 'test'; it needs config\.data\.test_file"
    ):
        prepare.check_files(recipe.load(spec("reft", data="svamp", train_file="t.json"), [chosen])[0])
    prepare.check_files(recipe.load(spec("reft", data="svamp", train_file="t.json", test_file="t.json"), [chosen])[0])
    prepare.check_files(recipe.load(spec("demo"), [chosen])[0])  # its questions are generated


@pytest.mark.parametrize(
    "text, parts",
    [
        (None, ["no file", "x.py"]),
        ("def get_config(arg=''):\n    return 1 +\n", ["invalid syntax", "line 2"]),
        ("value = 1\n", ["get_config"]),
        ("import no_such_module\n", ["no_such_module"]),
        (
            "from reft_jax.configs import common\n\n\ndef get_config(arg=''):\n    return common.arithmetik(arg)\n",
            ["arithmetik"],
        ),
        (
            "from reft_jax.configs import common\n\n\ndef get_config(arg=''):\n    return common.config(seed=0, model=common.PRESETS['tinny'])\n",
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
        "import ml_collections\nfrom reft_jax.configs import demo\n\n\ndef get_config(arg=''):\n"
        "    return ml_collections.ConfigDict(demo.get_config('smoke').to_dict())\n"
    )
    with pytest.raises(InputError) as caught:
        recipe.load(str(path))
    message = str(caught.value)
    assert "config.stages.evaluate" in message and "stages run in order" in message and "sort_keys=False" in message


# ------------------------------------------------------------------ keys


def groups(tree):
    """(path, class) of every group of settings in a filled tree; None for the whole."""
    yield "config", None
    for key, cls in recipe.GROUPS.items():
        yield from below(cls, tree[key], f"config.{key}")
    for name, stage in tree["stages"].items():
        yield from below(choices.load("stages", stage["kind"]), stage, f"config.stages.{name}")


def below(cls, node, path):
    """The same of a record's group and of those in it."""
    yield path, cls
    for field in records.fields(cls):
        here, value, room = f"{path}.{field.key}", node[field.key], field.about.get("room")
        if field.kind == "record" or field.kind == "optional" and value is not None:
            yield from below(field.record, value, here)
        elif field.kind == "choice":
            yield from below(choices.load(room, value["use"]), value, here)
        elif field.kind == "choices":
            for label, one in value.items():
                yield from below(choices.load(room, one["use"]), one, f"{here}.{label}")


def at(tree, path):
    for key in path.split(".")[1:]:
        tree = tree[key]
    return tree


TREES = (real_tree, demo_tree, stages_tree)
GROUPS = {path: (make, cls) for make in reversed(TREES) for path, cls in groups(make())}


@pytest.mark.parametrize("path", GROUPS)
def test_unknown_key_at_any_depth_names_the_nearest(path):
    make, _ = GROUPS[path]
    key = list(at(make(), path))[-1]
    tree = make()
    at(tree, path)[key + "x"] = at(tree, path)[key]  # beside the right key, so that nothing else is wrong
    message = refused(tree)
    nearest = difflib.get_close_matches(key + "x", list(at(make(), path)), n=1)[0]
    assert message.startswith(f"{path}.{key}x: unknown key; did you mean {nearest!r}?")


@pytest.mark.parametrize("path", GROUPS)
def test_missing_keys_are_filled_in_or_named(path):
    make, cls = GROUPS[path]
    known = {field.key: field for field in records.fields(cls)} if cls else {}
    whole = make()
    for key in at(whole, path):
        tree = make()
        del at(tree, path)[key]
        # an Arch is a Llama, a model without adapters, a choice the one that its label names, unless it says otherwise
        if known[key].optional if key in known else key in (*recipe.OPTIONAL, "use"):
            filled = recipe.fill(tree)
            value = at(filled, path)[key]
            if key in known and known[key].kind == "value":
                default = known[key].default
                assert value == (dict(default) if known[key].about["parse"] else default)
            if value == at(whole, path)[key]:
                assert filled == whole and recipe.build(tree) == recipe.build(whole)
            continue
        message = refused(tree)
        assert path in message and key in message


def test_a_config_file_says_only_what_it_changes():
    """Every default is filled in, and filled in again it stays as it is."""
    for name in ("demo", "reft", "paper_small"):
        given = importlib.import_module(f"reft_jax.configs.{name}").get_config("").to_dict()
        filled = recipe.fill(given)
        assert len(workdirs.flatten(filled)) > 2 * len(workdirs.flatten(given))
        assert recipe.fill(filled) == filled and recipe.build(given) == recipe.build(filled)


def test_unknown_logical_axis_names_the_nearest():
    tree = demo_tree()
    tree["mesh"]["rules"]["embedd"] = tree["mesh"]["rules"].pop("embed")
    message = refused(tree)
    assert message.startswith("config.mesh.rules.embedd: unknown") and "'embed'" in message


# ------------------------------------------------------------------ types and ranges


def leaves(path, cls):
    """(path of the group, key, type, what `setting` said) of every setting with a plain type."""
    for field in records.fields(cls) if cls else ():
        plain = field.hint in (int, float, str, bool, tuple[int, ...], tuple[str, ...])
        if field.kind == "value" and plain and not field.about.get("parse"):
            yield path, field.key, field.hint, field.about


LEAVES = sorted(
    (leaf for path, (_, cls) in GROUPS.items() for leaf in leaves(path, cls)),
    key=lambda leaf: leaf[:2],
)


def broken(path, key, value):
    """The message for config.<path>.<key> = value, in a config that has that key."""
    tree = GROUPS[path][0]() if path in GROUPS else real_tree()
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
    if meta["one_of"] is not None or meta["room"]:
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
    assert f"did you mean 'svamp'? {legal('tasks')}" in broken("config.data", "task", "swamp")
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
        "config.stages.reft.advantage",
        "config.stages.reft.advantage.kl",
        "config.stages.reft.losses",
        "config.stages.reft.rewards",
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
        ("stages.reft.optim.schedule.warmup", 0.5, ["optim.schedule.hold", "warmup = 0.5"]),
        ("stages.sft.optim.schedule_epochs", 1.0, ["schedule_epochs", "it must cover epochs = "]),
        ("data.dev_size", 0, ["select_on", "dev_size"]),
        ("data.source", "generated", ["config.data.source: got 'generated'; legal for svamp are files, tfds"]),
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


def test_a_locked_config_takes_overrides_and_stays_as_it_was():
    config = demo.get_config("smoke")
    tree = recipe.fill(config.to_dict())
    recipe.override(tree, "data.num_train", "2")
    assert tree["data"]["num_train"] == 2 and config.data.num_train == 64 and config.is_locked


def test_a_preset_is_filled_with_what_an_arch_takes_for_granted():
    """configs/models.py says what differs from the defaults of reft_jax/config/settings.py; config.json says all."""
    record, tree = recipe.load(spec("sft", data="arithmetic", model="tiny"))
    arch = tree["model"]["arch"]
    assert set(arch) == {field.name for field in dataclasses.fields(settings_lib.Arch)}
    required = {f.name: arch[f.name] for f in dataclasses.fields(settings_lib.Arch) if f.default is dataclasses.MISSING}
    assert settings_lib.Arch(**required) == record.model.arch
    assert set(common.PRESETS["tiny"]) == set(required)


@pytest.mark.parametrize(
    "lora, base, said",
    [
        ("{'rank': 0, 'alpha': 1.0, 'targets': '.*'}", "full", "lora.rank: got 0; it must be >= 1"),
        ("{'rank': 2, 'alpha': 1.0, 'targets': '('}", "full", "not a regular expression"),
        ("{'rank': 2}", "full", "config.model.lora: missing alpha, which has no default"),
        ("{'rank': 2, 'alpha': 1.0, 'target': 'x'}", "full", "lora.target: unknown key; did you mean 'targets'?"),
        ("None", "int4", "only the frozen base under adapters is quantized"),
        ("None", "int3", "base: got 'int3'; did you mean 'int8'? legal are full, int8, int4, nf4"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(lora, base, said):
    with pytest.raises(InputError) as caught:
        recipe.load(spec("demo"), [("model.lora", lora), ("model.base", base)])
    assert said in str(caught.value)


# ------------------------------------------------------------------ choices


def files_of(room: str) -> list[str]:
    """The files of a room's folder that define its word, read as text."""
    word = re.compile(rf"^(class|def) {choices.ROOMS[room]}\b|^{choices.ROOMS[room]}( =|:)", re.M)
    folder = runs.ROOT / "reft_jax" / room
    return sorted(path.stem for path in folder.glob("*.py") if word.search(path.read_text(encoding="utf-8")))


def legal(room: str) -> str:
    return f"legal are {', '.join(files_of(room))}, or the path of a file of your own (my.py)"


ROOM, LOSSES, TERMS = legal("advantages"), legal("losses"), legal("rewards/terms")


def loaded(*flags, name="demo"):
    """(record, filled tree) of a config at toy size with "key=value" flags."""
    text = spec(name, smoke=True) if name in ARGUMENTS else str(runs.ROOT / f"tests/{name}.py")
    return recipe.load(text, [tuple(flag.split("=", 1)) for flag in flags])


def no(*flags, name="demo") -> str:
    """What is said of such flags, which are refused."""
    with pytest.raises(InputError) as caught:
        loaded(*flags, name=name)
    return str(caught.value)


def stage_of(*flags, stage="reft", name="demo"):
    return dict(loaded(*flags, name=name)[0].stages)[stage]


def test_a_choice_that_is_set_begins_with_its_files_defaults():
    demos = stage_of().advantage
    assert demos == gae.Advantage(kl=KL(coef=0.02), critic=Critic(coef=1.0, init="zeros"))
    k = "stages.reft.num_samples=2"
    for flag in ("stages.reft.advantage=rloo", "stages.reft.advantage.use=rloo"):
        record, tree = loaded(flag, k)
        assert dict(record.stages)["reft"].advantage == rloo.Advantage()  # not with the coefficient of the demo's gae
        kl = {"in": "reward", "coef": 0.03, "estimator": "unbiased"}
        assert tree["stages"]["reft"]["advantage"] == {"use": "rloo", "kl": kl}
    assert stage_of("stages.reft.advantage=gae").advantage == gae.Advantage()
    assert stage_of("stages.reft.advantage=rloo", "stages.reft.advantage.kl.in=loss", k).advantage.kl.in_loss
    own = stage_of("stages.reft.advantage=gae", "stages.reft.advantage.lam=0.5", "stages.reft.advantage.critic.coef=2")
    assert own.advantage == gae.Advantage(lam=0.5, critic=Critic(coef=2.0))


@pytest.mark.parametrize(
    "value",
    ["rloo", dict(use="rloo"), dict(use="rloo", kl=dict(coef=0.03))],
)
def test_a_choice_in_a_tree_is_a_name_or_a_group(value):
    tree = demo_tree()
    tree["stages"]["reft"] |= dict(advantage=value, num_samples=2)
    assert recipe.build(tree) == loaded("stages.reft.advantage=rloo", "stages.reft.num_samples=2")[0]
    tree["stages"]["reft"]["advantage"] = {}
    assert dict(recipe.build(tree).stages)["reft"].advantage == gae.Advantage()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["advantage=rlo"], f".advantage: got 'rlo'; did you mean 'rloo'? {ROOM}"),
        (
            ["advantage.use=groups"],
            ".advantage: got 'groups'; ",
        ),  # a file of the room that is no choice
        (["advantage=3"], f".advantage: got '3'; {ROOM}"),
        (
            ["advantage.lamm=1"],
            ".advantage.lamm: unknown key; did you mean 'lam'? known are gamma, lam, whiten, kl, cr",
        ),
        (["advantage=rloo", "advantage.lam=1"], ".advantage.lam: unknown key; known are kl"),
        (["advantage=rloo", "advantage.critic.coef=1"], ".advantage.critic: unknown key; known are kl"),
        (["advantage.kl.in=nowhere"], ".advantage.kl.in: got 'nowhere'; legal are reward, loss, off"),
        (["advantage.kl=1"], ".advantage.kl: it is a group; set one of in, coef, estimator"),
        (
            ["advantage=grpo", "num_samples=2", "advantage.kl.in=reward"],
            ".advantage.kl.in: got 'reward'; GRPO divides by",
        ),
        (
            ["advantage.kl.in=loss", "advantage.kl.estimator=k1"],
            ".advantage.kl.estimator: got 'k1'; the gradient of k1",
        ),
        (
            ["advantage.kl.estimator=auto"],
            ".advantage.kl.estimator: got 'auto'; it is now 'unbiased'; legal are unbiased",
        ),
        (
            ["advantage=rloo"],
            ".num_samples: got 1; its advantage compares the responses to one question; it must be >= 2",
        ),
        (["kind=sft"], ".kind: a stage's kind stands in the config file (now 'reft')"),
    ],
)
def test_choices_that_are_refused(flags, said):
    assert no(*(f"stages.reft.{flag}" for flag in flags)).startswith(f"config.stages.reft{said}")


@pytest.mark.parametrize(
    "value, said",
    [
        ("rlo", ".advantage: got 'rlo'; did you mean 'rloo'?"),
        (dict(use="rlo"), ".advantage: got 'rlo'; did you mean 'rloo'?"),
        (dict(use=3), ".advantage: got {'use': 3}; it must be a name or a group {use: name, ...}; legal are "),
        (dict(use="rloo", lam=1.0), ".advantage.lam: unknown key; known are kl"),
        (dict(lamm=1.0), ".advantage.lamm: unknown key; did you mean 'lam'?"),
        (0.5, ".advantage: got 0.5; it must be a name or a group"),
    ],
)
def test_choices_in_a_tree_that_are_refused(value, said):
    assert broken("config.stages.reft", "advantage", value).startswith(f"config.stages.reft{said}")


# ------------------------------------------------------------------ several choices, by label


def test_a_bare_number_is_a_coef_or_a_weight():
    for flag in ("stages.sft.losses.nll=0.5", "stages.sft.losses.nll.coef=0.5"):
        assert stage_of(flag, stage="sft").losses == (("nll", nll.Loss(coef=0.5)),)
    rewards = stage_of("stages.reft.rewards.partial=0.5", "stages.reft.rewards.partial.on=all").rewards
    assert rewards == (("right", right.Term()), ("partial", partial.Term(weight=0.5, on="all")))
    assert rewards == stage_of("stages.reft.rewards.partial.on=all", "stages.reft.rewards.partial=0.5").rewards
    tree = demo_tree()
    tree["stages"]["reft"]["rewards"] = dict(right=2, partial={})
    assert dict(recipe.build(tree).stages)["reft"].rewards == (
        ("right", right.Term(weight=2.0)),
        ("partial", partial.Term()),
    )
    filled = recipe.fill(tree)["stages"]["reft"]["rewards"]
    assert filled == dict(right=dict(use="right", weight=2), partial=dict(use="partial", weight=0.1, on="numeric"))


def test_a_label_that_is_not_there_and_names_a_file_adds_it():
    losses = stage_of("stages.reft.losses.nll.coef=0.5").losses
    assert (
        losses
        == (("policy", policy.Loss()), ("nll", nll.Loss(coef=0.5)))
        == stage_of("stages.reft.losses.nll=0.5").losses
    )
    named = stage_of("stages.reft.losses.again.use=policy", "stages.reft.losses.again.clip=0.1").losses
    assert named == (("policy", policy.Loss()), ("again", policy.Loss(clip=0.1)))
    assert stage_of("stages.reft.losses.again=policy").losses[1] == ("again", policy.Loss())
    assert stage_of("stages.reft.losses.policy.use=nll").losses == (("policy", nll.Loss()),)
    online = stage_of("stages.online.losses.own_gold.own=0.25", stage="online", name="stages_config").losses
    assert online == (("own_gold", own_gold.Loss(own=0.25)),)


def test_none_takes_a_label_away_and_a_tree_has_those_that_it_names():
    assert stage_of("stages.reft.rewards.partial=None").rewards == (("right", right.Term()),)
    tree = demo_tree()
    tree["stages"]["reft"]["rewards"] = dict(right={})
    assert recipe.build(tree) == loaded("stages.reft.rewards.partial=None")[0]
    assert stage_of("stages.reft.rewards.partial=None", "stages.reft.rewards.partial=0.1") == stage_of()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["reft.losses.polcy=0.5"], f"reft.losses.polcy: got 'polcy'; did you mean 'policy'? {LOSSES}"),
        (
            ["reft.losses.polcy.coef=1"],
            f"reft.losses.polcy: unknown label; did you mean 'policy'? there are policy; {LOSSES}",
        ),
        (
            ["reft.rewards.mine.weight=1"],
            f"reft.rewards.mine: unknown label; there are right, partial; {TERMS}, which",
        ),
        (["reft.rewards.mine=None"], "reft.rewards.mine: there is none to take away; there are right, partial"),
        (
            ["reft.losses.policy.clap=1"],
            "reft.losses.policy.clap: unknown key; did you mean 'clip'? known are coef, clip, clip_high",
        ),
        (["reft.losses.policy.clip=wide"], "reft.losses.policy.clip: got 'wide'; it must be of type float (now 0.2)"),
        (["reft.losses.policy=-1"], "reft.losses.policy.coef: got -1.0; it must be >= 0"),
        (["reft.rewards.partial=2"], "reft.rewards.partial.weight: got 2.0; it must be <= 1"),
        (
            ["reft.losses=nll"],
            f"reft.losses: it is a group; set one of {', '.join(dict.fromkeys(['policy', *files_of('losses')]))}",
        ),
        (
            ["reft.rewards.right=None", "reft.rewards.partial=None"],
            "reft.rewards: a response must be paid by something: legal is a group of one term or more",
        ),
        (["sft.losses.nll=None"], "sft.losses: something must be minimised: legal is a group of one loss or more"),
        (
            ["reft.losses.policy=None"],
            "reft.losses: something must be minimised: legal is a group of one loss or more",
        ),
        (
            ["sft.losses.own_gold=0.5"],
            "sft.losses.own_gold: it reads own, which a batch of texts does not give",
        ),
        (
            ["sft.losses.value=1"],
            "sft.losses.value: it needs values, which a batch of texts does not give (it gives logp",
        ),
        (
            ["reft.advantage=reinforce_pp", "reft.losses.value=1"],
            "reft.losses.value: it needs values, which a reft stage without a critic does not give",
        ),
    ],
)
def test_labels_that_are_refused(flags, said):
    assert no(*(f"stages.{flag}" for flag in flags)).startswith(f"config.stages.{said}")


# ------------------------------------------------------------------ files of one's own

OWN = """
import dataclasses

import numpy as np

from reft_jax.config.records import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    weight: float = setting(default=0.25)
    most: int = setting(1, default=8)

    needs = ()

    def __call__(self, responses, scored):
        return np.array([len(text) <= self.most for text in responses.texts], np.float32)


class Other(Term):
    pass
"""


@pytest.fixture
def my(tmp_path, monkeypatch):
    """my.py with a reward term and another in it, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(OWN)
    return tmp_path / "my.py"


def test_a_file_of_ones_own_is_a_choice(my):
    flags = ["stages.reft.rewards.mine.use=my.py", "stages.reft.rewards.mine.weight=0.5"]
    record, tree = loaded(*flags)
    *before, (label, term) = dict(record.stages)["reft"].rewards
    assert before == list(stage_of().rewards) and (label, term.weight, term.most) == ("mine", 0.5, 8)
    assert tree["stages"]["reft"]["rewards"]["mine"] == dict(use="my.py", weight=0.5, most=8)
    assert recipe.build(tree) == record and hash(record) == hash(recipe.build(tree))
    assert loaded("stages.reft.rewards.mine=my.py", flags[1])[0] == record
    tree = demo_tree()
    tree["stages"]["reft"]["rewards"]["mine"] = dict(use=str(my), weight=0.5)
    assert dict(recipe.build(tree).stages)["reft"].rewards[-1] == ("mine", term)
    assert stage_of(*flags, "stages.reft.rewards.mine=None") == stage_of()


def test_one_of_several_in_a_file_is_named_after_it(my):
    label, term = stage_of("stages.reft.rewards.mine.use=my.py:Other").rewards[-1]
    assert (label, type(term).__name__) == ("mine", "Other")
    assert no("stages.reft.rewards.mine.use=my.py:Nothing").endswith(
        "my.py: defines no Nothing, which a file of rewards/terms does (reft_jax/rewards/terms/ has examples)"
    )


@pytest.mark.parametrize(
    "text, use, said",
    [
        (OWN, "your.py", "your.py: cannot be read (No such file or directory)"),
        ("def Term(:", "my.py", "my.py: cannot be imported: SyntaxError"),
        ("import no_such_module", "my.py", "my.py: cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "my.py", "my.py: cannot be imported: ZeroDivisionError: division by zero"),
        ("x = 1", "my.py", "my.py: defines no Term, which a file of rewards/terms does"),
        ("class Term: pass", "my.py", "my.py: Term must be a frozen dataclass, whose fields are its settings"),
        (OWN.replace("frozen=True, ", ""), "my.py", "my.py: Term must be a frozen dataclass"),
    ],
)
def test_files_of_ones_own_that_cannot_be_used(my, text, use, said):
    my.write_text(text)
    message = no(f"stages.reft.rewards.mine.use={use}")
    assert "config.stages.reft.rewards.mine: " in message and said in message
    tree = demo_tree()
    tree["stages"]["reft"]["rewards"]["mine"] = dict(use=use)
    assert said in refused(tree)


def test_settings_of_a_file_of_ones_own_are_checked(my):
    use = "stages.reft.rewards.mine.use=my.py"
    assert "mine.mots: unknown key; did you mean 'most'? known are weight, most" in no(
        use, "stages.reft.rewards.mine.mots=3"
    )
    assert "mine.most: got 0; it must be >= 1" in no(use, "stages.reft.rewards.mine.most=0")


@pytest.mark.slow
def test_the_hash_of_a_file_of_ones_own_is_kept_and_compared_when_a_run_goes_on(my, tmp_path):
    own = hashlib.sha256(my.read_bytes()).hexdigest()
    use = "--config.stages.reft.rewards.mine.use=my.py"

    def begin(*flags):
        argv = [f"--config={spec('demo', smoke=True)}", f"--workdir={tmp_path / 'run'}", *flags]
        return main_lib.prepare(argv, Stop())[1]

    about = begin(use)
    assert about["own_files"] == {"my.py": own} and begin()["own_files"] == {}
    (tmp_path / "run/reft").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps(about))
    assert begin(use) == about  # the same goes on
    my.write_text(OWN + "# changed\n")
    with pytest.raises(InputError) as caught:
        begin(use)
    message = str(caught.value)
    assert message.startswith(
        f"--workdir={tmp_path / 'run'}: its run was begun with another my.py (it has changed since: "
    )
    assert f"SHA-256 {own[:16]}... then, SHA-256 {choices.sha256('my.py')[:16]}... now); restore it" in message
    my.write_text(OWN)
    assert begin(use) == about


def test_every_kind_of_choice_may_be_a_file_of_ones_own(my, tmp_path):
    """A task and a matcher (names in config.data), a stage, an advantage: each is found, and its hash is taken."""
    for name, text in dict(
        task="from reft_jax.tasks.svamp import Task as Task\n",
        matcher="from reft_jax.rewards.matchers.reft import MATCHER as MATCHER\n",
        stage="from reft_jax.stages.sft import Stage as Stage, run as run\n",
        adv="from reft_jax.advantages.rloo import Advantage as Advantage\n",
    ).items():
        (tmp_path / f"{name}.py").write_text(text)
    tree = real_tree()
    tree["data"] |= dict(task="task.py", matcher="matcher.py")
    tree["stages"]["warmup"]["kind"] = "stage.py"
    tree["stages"]["reft"] |= dict(advantage="adv.py", num_samples=2)
    record, files = recipe.build(tree), recipe.own_files(recipe.fill(tree))
    assert dict(record.kinds)["warmup"] == "stage.py" and record.data.task == "task.py"
    assert files == {name: choices.sha256(name) for name in ("task.py", "matcher.py", "stage.py", "adv.py")}


# ------------------------------------------------------------------ rooms


FOUND = dict(
    stages="evaluate export reft reranker self_train sft",
    advantages="dr_grpo gae grpo reinforce_pp rloo",
    losses="classifier kl nll own_gold policy value",
    tasks="arithmetic gsm8k math mathqa mathqa-numeric stories svamp",
) | {"rewards/terms": "partial right", "rewards/matchers": "auto gsm8k_flexible gsm8k_strict math reft reft_paper"}


@pytest.mark.parametrize("room", choices.ROOMS)
def test_a_room_lists_the_files_that_define_its_word(room):
    names = choices.names(room)
    assert list(names) == files_of(room) and set(FOUND.get(room, "").split()) <= set(names)
    for name in names:
        defined = choices.load(room, name)
        assert defined is getattr(choices.module(room, name), choices.ROOMS[room])
        assert choices.module(room, name).__doc__  # its file begins with what it is
    with pytest.raises(InputError) as caught:
        choices.load(room, names[0] + "x")
    assert str(caught.value) == f"{names[0] + 'x'!r} is no file of {room}; did you mean {names[0]!r}? {legal(room)}"


# ------------------------------------------------------------------ keys that had other names


def concrete(key: str) -> str:
    """A row's key with a stage that has it."""
    return key.replace(
        "*", "online" if key.endswith(("own_weight", "gold_weight", "own_gold.own", "own_gold.gold")) else "reft"
    )


def old_tree(key: str):
    return stages_tree() if "online" in key else demo_tree()


OLD = [(old, new) for old, new in renamed.KEYS if old != "data.name"]  # which is a label now


@pytest.mark.parametrize("old, new", OLD, ids=[old for old, _ in OLD])
def test_an_old_key_is_told_the_new_one(old, new):
    old, new = concrete(old), concrete(new)
    tree = old_tree(old)
    with pytest.raises(InputError) as caught:
        recipe.override(tree, old, "1")
    assert str(caught.value) == f"config.{old}: it is now config.{new}"
    name = "stages_config" if "online" in old else "demo"
    assert no(f"{old}=1", name=name) == f"config.{old}: it is now config.{new}"
    at(old_tree(old), f"config.{new}")  # and that is a key
    *parents, leaf = old.split(".")
    if parents == ["rewards"]:
        tree["rewards"] = {leaf: 1}
        assert refused(tree) == "config.rewards: it is now config.verifier"
    else:
        at(tree, ".".join(["config", *parents]))[leaf] = 1
        assert refused(tree) == f"config.{old}: it is now config.{new}"


def test_old_keys_that_are_keys_now_and_groups_are_told_too():
    assert no("data.name=svamp") == (
        "config.data.name: got 'svamp'; a label decides nothing, and this is a task's name: "
        "set config.data.task (now 'arithmetic')"
    )
    assert loaded("data.name=my problems")[0].data.name == "my problems"
    assert no("rewards=1") == "config.rewards: it is now config.verifier"
    assert "config.data.append_prefix: got 'reft'; it is now 'rollouts'; legal are everywhere, rollouts, nowhere" in no(
        "data.append_prefix=reft"
    )


def test_a_new_key_is_not_taken_for_an_old_one():
    for new in {new for _, new in renamed.KEYS}:
        assert renamed.told(f"config.{concrete(new)}") == ""


def older(tree):
    """A filled tree as config.json had it before, with the settings that then stood beside those of every advantage."""
    tree = copy.deepcopy(tree)
    tree["rewards"] = tree.pop("verifier")
    tree["data"] = {key: value for key, value in tree["data"].items() if key != "task"} | dict(
        name=tree["data"]["task"]
    )
    for stage in tree["stages"].values():
        if stage["kind"] == "reft":
            stage["ppo"] |= dict(gamma=1.0, lam=0.95, whiten=True, critic="none", value_init="normal", value_bias=True)
            stage["ppo"] |= dict(value_coef=5.0, value_clip=0.2)
        elif stage["kind"] == "self_train":
            stage |= dict(own_weight=0.5, gold_weight=0.5)
        for old, new in renamed.KEYS:
            *group, leaf = old.removeprefix("stages.*.").split(".")
            node = stage
            for key in new.removeprefix("stages.*.").split("."):
                node = node.get(key) if isinstance(node, dict) else None
            if not old.startswith("stages.") or node is None or group and group[0] not in stage:
                continue
            (stage[group[0]] if group else stage)[leaf] = node["use"] if isinstance(node, dict) else node
        for key in ("advantage", "losses", *(("rewards", "reduce") if stage["kind"] == "reft" else ())):
            stage.pop(key, None)
        if "optim" in stage:
            del stage["optim"]["schedule"], stage["optim"]["use"]
    return tree


@pytest.mark.parametrize("method", [None, "rloo", "grpo", "reinforce_pp"])
def test_the_config_of_an_older_run_is_read_with_todays_keys(method):
    flags = [f"stages.reft.advantage={method}", "stages.reft.num_samples=2"] if method else []
    flags += ["stages.reft.losses.policy.clip_high=0.3", "stages.reft.rewards.partial.on=all", "verifier.timeout_s=3"]
    flags += ["stages.reft.advantage.kl.estimator=k3"] if method == "grpo" else []  # the only one there was in the loss
    for tree in (loaded(*flags, "data.append_prefix=rollouts")[1], stages_tree()):
        before = older(tree)
        if before["data"]["append_prefix"] == "rollouts":
            before["data"]["append_prefix"] = "reft"
        assert renamed.is_old(before) and not renamed.is_old(tree) and refused(before)
        asked = copy.deepcopy(before)
        now = renamed.modern(before)
        assert recipe.fill(now) == tree and before == asked and renamed.modern(now) == now


@pytest.mark.parametrize("make", TREES)
def test_the_config_of_a_run_from_when_rates_had_one_shape_is_read(make):
    tree = make()
    before = copy.deepcopy(tree)
    for stage in before["stages"].values():
        if "optim" in stage:
            shape, _ = stage["optim"].pop("schedule"), stage["optim"].pop("use")
            stage["optim"] |= {key: shape[key] for key in renamed.SHAPE}
    assert renamed.is_old(before) and "it is now config.stages." in refused(before)
    now = renamed.modern(before)
    assert recipe.fill(now) == tree and renamed.modern(now) == now and not renamed.is_old(now)


# ------------------------------------------------------------------ what a started run may change

BEGUN = dict(config=None, git_commit="0123456789abcdef")


def begun(folder, tree, stages=()):
    """A workdir with the config.json of a run whose stages have begun."""
    folder.mkdir(exist_ok=True)
    for name in stages or tree["stages"]:
        (folder / name).mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BEGUN | dict(config=tree)))
    return folder


def changed(folder, tree) -> list[str]:
    """The keys that keep a run from going on; none if it may."""
    try:
        workdirs.check(folder, tree, recipe.binding)
    except InputError as error:
        assert f"--workdir={folder}: holds a run of another config" in str(error)
        return re.findall(r"^  (\S+): there", str(error), re.M)
    return []


FREE = (
    *("logging.tensorboard=False", "logging.wandb=offline", "logging.wandb_project=p", "logging.profile_steps=(1,2)"),
    *("mesh.data=2", "mesh.fsdp=4", "mesh.tensor=1", "mesh.decode=tensor", "mesh.moments=host", "verifier.workers=1"),
    *("stages.sft.log_every=7", "stages.sft.save_every=7", "stages.reft.log_every=7", "stages.reft.save_every=7"),
    *("stages.reft.log_samples=7", "model.slice_tokens=512"),
)


@pytest.mark.parametrize("flag", FREE)
def test_what_a_started_run_may_change(tmp_path, flag):
    folder = begun(tmp_path / "run", demo_tree())
    more = ["mesh.data=1"] if flag.startswith("mesh.fsdp") else []
    assert changed(folder, loaded(flag, *more)[1]) == []
    assert flag.partition("=")[0] not in {key.removeprefix("config.") for key in recipe.binding(demo_tree())}


def test_nothing_else_is_free():
    for make in TREES:
        tree = make()
        free = {key.removeprefix("config.") for key in records.flatten(tree).keys() - recipe.binding(tree).keys()}
        named = {flag.partition("=")[0] for flag in FREE if not flag.startswith("stages.")}
        for name, stage in tree["stages"].items():
            named |= {f"stages.{name}.{key}" for key in ("log_every", "save_every", "log_samples") if key in stage}
        assert free == named


@pytest.mark.parametrize(
    "flag",
    [
        "seed=1",
        "data.seed=1",
        "data.name=other",
        "model.remat=block",
        "verifier.timeout_s=1.0",
        "mesh.rules.embed=()",
        "stages.reft.optim.lr=0.1",
        "stages.reft.losses.policy.clip=0.1",
        "stages.reft.advantage.kl.coef=0.1",
        "stages.reft.advantage.critic.trunk=separate",
        "stages.reft.rewards.right.weight=0.5",
        "stages.reft.max_logp_gap=0.5",
        "stages.evaluate.num_samples=2",
        "stages.evaluate.checkpoints.reft=sft",
    ],
)
def test_what_a_started_run_may_not_change(tmp_path, flag):
    folder = begun(tmp_path / "run", demo_tree())
    key = flag.partition("=")[0]
    assert changed(folder, loaded(flag)[1]) == [f"config.{key}"]
    assert f"config.{key}" in recipe.binding(demo_tree())
    if "stages." in flag:  # but before the stage has begun it may
        other = begun(tmp_path / "other", demo_tree(), ["warmup"])
        assert changed(other, loaded(flag)[1]) == []


def test_choices_and_labels_of_a_started_run_are_bound(tmp_path):
    folder = begun(tmp_path / "run", demo_tree())
    k = "stages.reft.ppo.epochs=2"
    assert "config.stages.reft.advantage.use" in changed(folder, loaded("stages.reft.advantage=reinforce_pp", k)[1])
    added = changed(folder, loaded("stages.reft.losses.nll=0.5")[1])
    assert added == ["config.stages.reft.losses.nll.coef", "config.stages.reft.losses.nll.use"]
    gone = changed(folder, loaded("stages.reft.rewards.partial=None")[1])
    assert gone == [f"config.stages.reft.rewards.partial.{key}" for key in ("on", "use", "weight")]


def test_an_evaluated_label_is_bound_whatever_it_is_called(tmp_path):
    """Once, a label with the name of a free setting elsewhere (`data`, of config.mesh) could be changed under a run."""
    labels = ("data", "fsdp", "workers", "log_every")
    tree = demo_tree()
    tree["stages"]["evaluate"]["checkpoints"] = dict.fromkeys(labels, "sft")
    folder = begun(tmp_path / "run", tree)
    assert changed(folder, tree) == []
    for label in labels:
        other = copy.deepcopy(tree)
        other["stages"]["evaluate"]["checkpoints"][label] = "reft"
        assert changed(folder, other) == [f"config.stages.evaluate.checkpoints.{label}"]


def test_a_run_of_an_older_version_is_refused_naming_its_commit(tmp_path):
    old = demo_tree()
    old["rewards"] = old.pop("verifier")
    folder = begun(tmp_path / "run", old)
    with pytest.raises(InputError) as caught:
        workdirs.check(folder, demo_tree(), recipe.binding)
    message = str(caught.value)
    assert message.startswith(
        f"--workdir={folder}: its run was begun by an older version, whose settings had other names"
    )
    assert "git checkout 0123456789abcdef; or choose another folder" in message
    (folder / "config.json").write_text(json.dumps(dict(config=old, git_commit=None)))
    with pytest.raises(InputError, match=r"the commit that began it \(unknown\): git checkout COMMIT"):
        workdirs.check(folder, demo_tree(), recipe.binding)


# ------------------------------------------------------------------ where config files are found


@pytest.mark.parametrize("name", ["demo", "demo.py", "configs/demo.py", "configs/demo", "paper_small"])
def test_a_shipped_config_is_found_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    found = recipe.find(name)
    assert found == CONFIGS / f"{pathlib.PurePath(name).stem}.py" and found.is_file()
    assert recipe.load(f"{name}:smoke") == recipe.load(f"{found}:smoke")


def test_a_file_that_is_there_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for path in (tmp_path / "demo.py", tmp_path / "configs/demo.py"):
        path.write_text("")
        assert recipe.find(str(path.relative_to(tmp_path))) == path
    assert recipe.find("demo") == CONFIGS / "demo.py"


@pytest.mark.parametrize(
    "name, said",
    [
        ("dmeo", "did you mean 'demo'?"),
        ("configs/dmeo.py", "did you mean 'demo'?"),
        ("other/demo.py", "FILE.py[:key=value,...]"),
        ("/nowhere/demo.py", "FILE.py[:key=value,...]"),
        ("", "FILE.py[:key=value,...]"),
    ],
)
def test_a_config_file_that_is_not_there(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        recipe.load(f"{name}:smoke")
    message = str(caught.value)
    assert message.startswith(f"--config: no file {name!r} (from {tmp_path}); ") and said in message
    assert message.endswith("demo, paper, paper_small, paper_text, pretrain, pretrain_text, reft, sft")


def test_a_config_finds_its_neighbours_and_the_shipped_ones(tmp_path):
    folder = tmp_path / "mine_and_more"
    folder.mkdir()
    (folder / "own.py").write_text("SEED = 7\n")
    (folder / "mine.py").write_text(
        "from mine_and_more import own\nfrom reft_jax.configs import common, demo\n\n\ndef get_config(arg=''):\n"
        "    return common.ordered(demo.get_config(arg).to_dict() | dict(seed=own.SEED))\n"
    )
    before = list(sys.path)
    assert recipe.load(f"{folder / 'mine.py'}:smoke")[0].seed == 7 and sys.path == before


@pytest.mark.parametrize("label", ["", "a/b", "a.b"])
def test_a_label_that_no_flag_can_reach_is_refused(label):
    tree = demo_tree()
    tree["stages"]["warmup"]["losses"] = {label: {"use": "nll"}}
    assert "config.stages.warmup.losses: label" in refused(tree)


@pytest.mark.parametrize(("text", "lacking"), [("run = print\n", "sources"), ("", "run, sources")])
def test_a_stage_file_that_main_cannot_run_is_refused_before_anything_runs(tmp_path, text, lacking):
    path = tmp_path / "half.py"
    path.write_text(
        f"import dataclasses\n\n{text}\n@dataclasses.dataclass(frozen=True)\nclass Stage:\n    size: int = 1\n"
    )
    tree = demo_tree()
    tree["stages"]["half"] = dict(kind=str(path))
    assert f"config.stages.half.kind: got {str(path)!r}; its file has no {lacking}:" in refused(tree)


def test_a_stage_cannot_begin_with_one_that_answers_no_questions():
    tree = demo_tree()
    tree["stages"] = {"export": dict(kind="export", init_from="random")} | tree["stages"]
    tree["stages"]["warmup"]["init_from"] = "export"
    assert "config.stages.warmup.init_from: 'export' is a stage of kind export, which answers no questions" in refused(
        tree
    )
