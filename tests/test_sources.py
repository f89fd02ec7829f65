"""What a run reads from outside its folder may not change under it: every file of a model's directory, records, tokenizer, code of choices."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from reft_jax import main as main_lib
from reft_jax import models
from reft_jax.config import choices
from reft_jax.data import prompts
from reft_jax.data import tokenizer as tokenizers
from reft_jax.errors import InputError, Stop
from reft_jax.run import sources
from tests import runs

OWN = """import dataclasses
import {helper}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    weight: float = 1.0

    def __call__(self, responses, scored):
        return [{helper}.BONUS for _ in responses.texts]
"""


def prepare(workdir, spec, *flags) -> dict:
    """What config.json is to say."""
    return main_lib.prepare([f"--config={runs.ROOT / 'configs' / spec}", f"--workdir={workdir}", *flags], Stop())[1]


def begin(workdir: pathlib.Path, about: dict, *stages: str) -> pathlib.Path:
    """The folder of a run in which these stages have begun."""
    workdir.mkdir()
    for stage in stages:
        (workdir / stage).mkdir()
    (workdir / "config.json").write_text(json.dumps(about))
    return workdir


# ------------------------------------------------------------------ a model's directory


@pytest.fixture(scope="module")
def on_a_directory(tmp_path_factory):
    """(directory, config, workdir) of a run that has begun with the shipped base's files and more."""
    folder = tmp_path_factory.mktemp("sources")
    directory = pathlib.Path(shutil.copytree(models.SHIPPED / "arithmetic_base", folder / "model"))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    spec = f"reft.py:smoke,data=arithmetic,model={directory}"
    about = prepare(folder / "run", spec)
    assert set(about["reads"]["run"]["read"][str(directory)]) == {
        path.name for path in directory.iterdir() if path.suffix != ".md"
    }
    return directory, spec, begin(folder / "run", about, "warmup")


def lowered(text: str) -> str:
    """tokenizer.json with the ids of two words exchanged."""
    tree = json.loads(text)
    vocabulary = tree["model"]["vocab"]
    a, b = sorted(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    return json.dumps(tree)


def edited(name: str):
    def edit(directory):
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"a_note": 1}))

    return edit


EDITS = {
    "tokenizer.json": lambda folder: (folder / "tokenizer.json").write_text(
        lowered((folder / "tokenizer.json").read_text())
    ),
    "tokenizer_config.json": edited("tokenizer_config.json"),
    "config.json": edited("config.json"),
    "generation_config.json": lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": [0, 3]}'),
    "chat_template.jinja": lambda folder: (folder / "chat_template.jinja").unlink(),
    "model.safetensors": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-4] + b"\0\0\0\1"
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_any_file_of_the_model_that_changes_under_a_run_is_named(on_a_directory, name):
    directory, spec, workdir = on_a_directory
    there = (directory / name).exists()
    before = (directory / name).read_bytes() if there else None
    EDITS[name](directory)
    try:
        with pytest.raises(InputError) as caught:
            prepare(workdir, spec)
    finally:
        (directory / name).write_bytes(before) if there else (directory / name).unlink()
    said = str(caught.value)
    assert said.startswith(
        f"--workdir={workdir}: its run was begun with another {directory / name} (it has changed since: "
    )
    assert said.endswith("restore it, or choose another folder")
    assert prepare(workdir, spec)  # as it was, it goes on


def test_large_weights_are_looked_at_in_many_places(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(20 * sources.MB))
    before = sources.of_file(path, weights=True)
    for place in (0, 9 * sources.MB + 5, 20 * sources.MB - 1):
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(b"\1")
            file.flush()
            assert sources.of_file(path, weights=True) != before
            file.seek(place)
            file.write(b"\0")
    assert sources.of_file(path, weights=True) == before != sources.of_file(path)


def test_a_run_that_was_begun_with_fewer_ends_keeps_them(tmp_path):
    directory = pathlib.Path(shutil.copytree(models.SHIPPED / "arithmetic_base", tmp_path / "model"))
    edited_config = json.loads((directory / "config.json").read_text()) | dict(eos_token_id=[1, 5])
    (directory / "config.json").write_text(json.dumps(edited_config))
    spec = f"reft.py:smoke,data=arithmetic,model={directory}"
    about = prepare(tmp_path / "run", spec)
    assert about["tokenizer"]["more_eos_ids"] == (5,)
    begin(tmp_path / "run", about, "warmup")
    assert prepare(tmp_path / "run", spec)["tokenizer"]["more_eos_ids"] == (5,)
    older = about | dict(
        tokenizer=about["tokenizer"] | dict(more_eos_ids=[])
    )  # of a version that did not read config.json
    older["reads"]["run"]["read"]["tokenizer"]["all"] = sources.of_tokenizer(tokenizers.load(directory), (1,))
    (tmp_path / "run" / "config.json").write_text(json.dumps(older))
    now = prepare(tmp_path / "run", spec)
    assert now["tokenizer"]["more_eos_ids"] == ()
    [note] = [note for note in now["notes"] if note.startswith("ends: ")]
    assert note.startswith(
        "ends: <eos> (1), with which this run was begun; in a new folder responses end with any of <eos> (1), "
    )


def beginning_with_eos(directory):
    """The shipped base with a tokenizer that puts its EOS token before a text, as OPT's does."""
    shutil.copytree(models.SHIPPED / "arithmetic_base", directory)
    state = json.loads((directory / "tokenizer.json").read_text())
    template = {"SpecialToken": {"id": "<eos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    tokens = {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}}
    state["post_processor"] = dict(
        type="TemplateProcessing", single=template, pair=[*template, *template], special_tokens=tokens
    )
    (directory / "tokenizer.json").write_text(json.dumps(state))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | dict(bos_token="<eos>")))
    return f"reft.py:smoke,data=arithmetic,model={directory}"


def test_bos_is_the_tokenizer_s_and_a_begun_run_keeps_what_it_had(tmp_path):
    spec, folder = beginning_with_eos(tmp_path / "model"), tmp_path / "run"
    run, about = main_lib.prepare([f"--config=configs/{spec}", f"--workdir={folder}"], Stop())
    assert (about["config"]["data"]["bos"], about["config"]["data"]["line_end"]) == ("on", "prefix")
    assert run.config.data.bos == "on" and tokenizers.puts_bos(run.tokenizer)
    told = prepare(folder, spec, "--config.data.bos=off")
    assert told["config"]["data"]["bos"] == "off" and "bos: off, though" in told["notes"][-1]
    begin(folder, about, "warmup")
    assert prepare(folder, spec)["config"] == about["config"] == prepare(folder, spec, "--config.data.bos=on")["config"]

    older = json.loads(json.dumps(about))  # of a version that had no such settings
    del older["config"]["data"]["bos"], older["config"]["data"]["line_end"]
    (folder / "config.json").write_text(json.dumps(older))
    run, now = main_lib.prepare([f"--config=configs/{spec}", f"--workdir={folder}"], Stop())
    assert (now["config"]["data"]["bos"], now["config"]["data"]["line_end"]) == ("off", "prefix")
    assert not tokenizers.puts_bos(run.tokenizer)  # what it exports is asked as it was trained
    assert any(
        note.startswith("bos: off, though the tokenizer itself begins a text with <eos>") for note in now["notes"]
    )
    with pytest.raises(InputError, match="config.data.bos: there 'off', now 'on'"):
        prepare(folder, spec, "--config.data.bos=on")


IDS = {  # SHA-256 of the training questions' tokens, as they were before config.data had bos and line_end
    "demo.py:smoke": "e4b67656d72cf099",
    "paper.py:row=main/codellama_7b/gsm8k/program/reft,smoke": "e4b67656d72cf099",
    "paper_small.py:smoke,cot=nl": "316545925330fc3e",
}


@pytest.mark.parametrize("spec", IDS)
def test_shipped_models_read_what_they_read(tmp_path, spec):
    run, _ = main_lib.prepare([f"--config={runs.ROOT / 'configs' / spec}", f"--workdir={tmp_path / 'run'}"], Stop())
    digest = hashlib.sha256()
    for purpose in prompts.PURPOSES:
        rows = prompts.encode_all(run.tokenizer, run.splits.train, run.config.data, purpose=purpose)
        digest.update(repr([(row.prompt, row.response) for row in rows]).encode())
    assert digest.hexdigest().startswith(IDS[spec])


# ------------------------------------------------------------------ data, tokenizer, code


def reads(run=None, **stages) -> dict:
    return {part: {"read": groups or {}, "code": {}} for part, groups in {"run": run, **stages}.items()}


@pytest.mark.parametrize("what", ["data", "tokenizer"])
def test_records_and_tokenizers_may_not_change(tmp_path, what):
    about = prepare(tmp_path / "run", "demo.py:smoke")
    [(name, digest)] = about["reads"]["run"]["read"][what].items()
    about["reads"]["run"]["read"][what][name] = "0" * 64
    begin(tmp_path / "run", about)
    assert prepare(tmp_path / "run", "demo.py:smoke")  # nothing has begun with it
    (tmp_path / "run" / "warmup").mkdir()
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "run", "demo.py:smoke")
    then, now = f"SHA-256 {'0' * 16}... then", f"SHA-256 {digest[:16]}... now"
    assert f"its run was begun with another {what}/{name} (it has changed since: {then}, {now}); restore it" in str(
        caught.value
    )


def test_the_code_of_every_choice_is_part_of_a_run(tmp_path):
    about = prepare(tmp_path / "run", "demo.py:smoke")
    code = {part: groups["code"].keys() for part, groups in about["reads"].items()}
    assert {"tasks/arithmetic", "rewards/matchers/reft"} <= code["run"]
    assert {"stages/reft", "advantages/gae", "losses/policy", "rewards/terms/right", "optim/adamw"} <= code["reft"]
    assert {"stages/sft", "losses/nll"} <= code["sft"] and not {"advantages/gae", "losses/policy"} & code["sft"]
    files = about["reads"]["reft"]["code"]["advantages/gae"]
    assert {"reft_jax/advantages/gae.py", "reft_jax/advantages/rewards.py"} <= files.keys()  # what it is made of


def test_code_may_change_only_under_what_has_not_begun(tmp_path):
    workdir = tmp_path / "run"
    about = prepare(workdir, "demo.py:smoke")
    now = json.loads(json.dumps(about["reads"]))
    about["reads"]["reft"]["code"]["losses/policy"]["reft_jax/losses/policy.py"] = "0" * 64
    begin(workdir, about, "warmup", "sft")
    assert prepare(workdir, "demo.py:smoke")
    (workdir / "reft").mkdir()
    with pytest.raises(InputError) as caught:
        prepare(workdir, "demo.py:smoke")
    said = str(caught.value)
    assert (
        "begun with another reft_jax/losses/policy.py" in said
        and f"remove {workdir / 'reft'}, so that the stage" in said
    )
    (workdir / "reft" / "DONE").write_text("{}")
    sources.check(workdir, now)  # it is not run again


def test_code_of_a_package_behind_a_link_has_the_names_that_it_has_elsewhere(tmp_path):
    (tmp_path / "reft_jax").symlink_to(runs.ROOT / "reft_jax")
    (tmp_path / "my.py").write_text("import reft_jax.losses.kl\nimport own_part\n\n\nclass Loss:\n    pass\n")
    (tmp_path / "own_part.py").write_text("")
    asked = "from reft_jax.config import choices; print(*choices.files('losses', 'policy'), *choices.files('losses', 'my.py'))"
    environment = runs.environment() | dict(PYTHONPATH=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["reft_jax/losses/policy.py", "my.py", "own_part.py"]


OWN_MODULES = {  # what my.py imports, and what that imports: at once, from a package, relatively, and later in a function
    "helper_of_a_term.py": "BONUS = 0.5\ndef later():\n    import late_helper\n",
    "late_helper.py": "x = 1\n",
    "pkg_of_a_term/__init__.py": "",
    "pkg_of_a_term/sub.py": "from . import rel\nfrom .deep import inner as inner\n",
    "pkg_of_a_term/rel.py": "y = 1\n",
    "pkg_of_a_term/deep/__init__.py": "",
    "pkg_of_a_term/deep/inner.py": "import numpy\n",
}


def test_what_ones_own_file_imports_is_part_of_it(tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text("import pkg_of_a_term.sub\n" + OWN.format(helper="helper_of_a_term"))
    for name, text in OWN_MODULES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ["--config.stages.reft.rewards.mine.use=my.py"]
    about = prepare(tmp_path / "run", "demo.py:smoke", *flags)
    assert set(about["reads"]["reft"]["code"]["my.py"]) == {"my.py", *OWN_MODULES}
    assert about["own_files"] == {"my.py": choices.sha256("my.py")}
    begin(tmp_path / "run", about, "warmup", "reft")
    assert prepare(tmp_path / "run", "demo.py:smoke", *flags)
    for name, text in OWN_MODULES.items():
        (tmp_path / name).write_text(text + "# changed\n")
        with pytest.raises(InputError, match=f"begun with another {name}"):
            prepare(tmp_path / "run", "demo.py:smoke", *flags)
        (tmp_path / name).write_text(text)


@pytest.mark.parametrize(
    "damaged", [None, {"run": None}, {"run": {"read": None}}, {"run": {"read": {"data": None}}, "warmup": {}}]
)
def test_a_damaged_record_of_what_was_read(tmp_path, damaged):
    about = prepare(tmp_path / "run", "demo.py:smoke")
    begin(tmp_path / "run", about | dict(reads=damaged), "warmup")
    with pytest.raises(InputError, match=r"config.json: reads is "):
        prepare(tmp_path / "run", "demo.py:smoke")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (reads(dict(d={"a": "1", "b": "2"})), None),
        (reads(dict(d={"a": "1"})), "another d/b (it has changed since: SHA-256 2... then, none now); restore"),
        (
            reads(dict(d={"a": "1", "b": "2", "c": "3"})),
            "another d/c (it has changed since: none then, SHA-256 3... now)",
        ),
        (
            reads(dict(d={"a": "2"})),
            "another d/a (it has changed since: SHA-256 1... then, SHA-256 2... now) (and so have 1 more files)",
        ),
        (reads(dict(e={"a": "1"})), None),  # the config binds which is read
    ],
)
def test_files_that_come_and_go(tmp_path, now, said):
    before = reads(dict(d={"a": "1", "b": "2"}), sft={})
    begin(tmp_path / "run", dict(reads=before), "sft")
    if said is None:
        return sources.check(tmp_path / "run", now)
    with pytest.raises(InputError) as caught:
        sources.check(tmp_path / "run", now)
    assert said in str(caught.value)
