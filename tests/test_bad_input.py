"""Everything that a user can get wrong: exit code 2, one message that says what and where, and nothing written."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from reft_jax import main as main_lib
from reft_jax import models, prepare, recipe
from reft_jax.data import tokenizer as tokenizers
from reft_jax.errors import InputError, Stop
from reft_jax.run import checkpoint, lock, metrics
from tests import runs

DEMO = f"--config={runs.ROOT / 'configs/demo.py'}:smoke"
RECORD = dict(item_id="q_0", question="Tom has 3 bags with 2 pens each. How many pens?", answer_value="6.0",
              answer_cot='def solution():\n    """Tom has 3 bags with 2 pens each. How many pens?"""\n    return 3 * 2')  # fmt: skip


@pytest.fixture(autouse=True)
def signals():
    """`main` listens to signals; the tests' own handling comes back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(tmp_path, capfd):
    """Runs main with these arguments; gives its one message, after seeing that it wrote nothing."""

    def run(*argv, workdir=tmp_path / "run"):
        before = runs.contents(tmp_path)
        workdirs = [f"--workdir={workdir}"] if workdir is not None else []
        assert main_lib.main([*map(str, argv), *workdirs]) == 2
        printed = capfd.readouterr()
        assert printed.err.startswith("error: ") and printed.err.count("error: ") == 1, printed.err
        assert "Traceback" not in printed.err and "Warning" not in printed.err and printed.out == ""
        assert runs.contents(tmp_path) == before
        return printed.err

    return run


def records(num=40, **changes):
    return [RECORD | dict(item_id=f"q_{i}", question=f"{RECORD['question']} ({i})") | changes for i in range(num)]


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=1))
    return path


def svamp(train, test="", extra="cot=program", data="svamp"):
    return f"--config={runs.ROOT / 'configs/reft.py'}:smoke,data={data},{extra},train_file={train},test_file={test}"


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize("argv, parts", [
    (["--workdir=x"], ["--config is missing", "usage:"]),
    ([DEMO], ["--workdir is missing", "usage:"]),
    ([DEMO, "--workdir"], ["--workdir needs a value"]),
    ([DEMO, "--workdir="], ["--workdir needs a value"]),
    ([DEMO, "--wrokdir=x"], ["'--wrokdir'", "usage:"]),
    ([DEMO, "--workdir=x", "smoke"], ["'smoke'", "usage:"]),
    ([DEMO, "--workdir=x", "-config.seed=1"], ["'-config.seed'", "usage:"]),
    (["--config=configs/dmeo.py", "--workdir=x"], ["configs/dmeo.py", "no file"]),
    (["--config=configs", "--workdir=x"], ["configs", "no file"]),
])  # fmt: skip
def test_command_line(refused, monkeypatch, tmp_path, argv, parts):
    monkeypatch.chdir(tmp_path)
    message = refused(*argv, workdir=None)
    for part in parts:
        assert part in message


def test_flags_may_stand_apart_from_their_values(refused):
    message = refused(DEMO.partition("=")[0], DEMO.partition("=")[2], "--config.seed", "x")
    assert "config.seed: got 'x'" in message


# ------------------------------------------------------------------ the config


@pytest.mark.parametrize("override, parts", [
    ("stages.reft.lr=1", ["config.stages.reft.lr: unknown key", "optim"]),
    ("stages.reft.advantage.kl.coeff=1", ["config.stages.reft.advantage.kl.coeff: unknown key; did you mean 'coef'?"]),
    ("stages.reft.ppo.kl_coef=1", ["config.stages.reft.ppo.kl_coef: it is now config.stages.reft.advantage.kl.coef"]),
    ("rewards.workers=1", ["config.rewards.workers: it is now config.verifier.workers"]),
    ("stages.reft.advantage=rlo", ["config.stages.reft.advantage: got 'rlo'; did you mean 'rloo'?", "my.py"]),
    ("stages.reft.rewards.mine=my.py", ["config.stages.reft.rewards.mine: got 'my.py'; my.py: cannot be read"]),
    ("stages.reft.batch_size=many", ["config.stages.reft.batch_size", "'many'", "int"]),
    ("stages.reft.losses.policy.clip=-1", ["config.stages.reft.losses.policy.clip", "-1.0", "> 0"]),
    ("stages.reft.ppo.minibatch_size=7", ["config.stages.reft.ppo.minibatch_size", "7", "divide", "32"]),
    ("stages.warmup.init_from=nowhere", ["config.stages.warmup.init_from", "'nowhere'", "random", "arithmetic_base"]),
    ("stages.evaluate.checkpoints.base=nowhere", ["config.stages.evaluate.base", "'nowhere'", "random"]),
    ("model.directory=nowhere", ["config.model.directory", "'nowhere'"]),
    ("data.max_prompt=5", ["config.data.prompt_buckets", "max_prompt = 5"]),
    ("stages.warmup.batch_size=12", ["config.stages.warmup.batch_size", "12", "data x fsdp = 8"]),
    ("stages.reft.ppo.accumulate=4", ["config.stages.reft.ppo.minibatch_size", "4 rows", "data x fsdp = 8"]),
    ("stages.reft.eval_batch_size=9", ["config.stages.reft.eval_batch_size", "9", "data x fsdp = 8"]),
    ("mesh.data=3", ["config.mesh", "data=3", "8 devices"]),
    ("mesh.fsdp=3", ["config.mesh", "fsdp=3", "8 devices"]),
    ("mesh.tensor=16", ["config.mesh", "tensor=16", "8 devices"]),
    ("data.dev_size=0", ["config.stages", "select_on", "dev_size"]),
])  # fmt: skip
def test_config(refused, override, parts):
    message = refused(DEMO, f"--config.{override}")
    for part in parts:
        assert part in message


def test_prompts_that_are_all_too_long(refused):
    message = refused(DEMO, "--config.data.max_prompt=5", "--config.data.prompt_buckets=(5,)")
    assert "none of 64 records fits" in message and "config.data.max_prompt is 5" in message


def test_responses_that_are_all_too_long(refused):
    message = refused(DEMO, "--config.data.max_response=3", "--config.data.response_buckets=(3,)")
    assert "none of 64 records fits" in message and "config.data.max_response is 3" in message


def test_a_model_whose_sizes_are_not_the_checkpoints(refused, tmp_path):
    """`init_from` with another architecture than config.model: seen before anything is written."""
    other = tmp_path / "other"
    shutil.copytree(runs.ROOT / "reft_jax/assets/arithmetic_base", other)
    config = json.loads((other / "config.json").read_text())
    write(other / "config.json", config | dict(num_hidden_layers=1))
    message = refused(DEMO, f"--config.stages.warmup.init_from={other}")
    assert "config.stages.warmup.init_from" in message and str(other) in message and "num_layers" in message


def test_a_checkpoint_folder_that_is_none(refused, tmp_path):
    (tmp_path / "stage" / "checkpoints").mkdir(parents=True)
    message = refused(DEMO, f"--config.stages.warmup.init_from={tmp_path / 'stage'}")
    assert f"{tmp_path / 'stage'} is a folder with no complete checkpoint" in message
    shutil.copytree(
        made_checkpoint(tmp_path / "done" / "checkpoints" / "3"), folder := tmp_path / "4.orbax-checkpoint-tmp"
    )
    message = refused(DEMO, f"--config.stages.warmup.init_from={folder}")
    assert f"{folder} is a checkpoint whose writing was interrupted" in message
    write(tmp_path / "config.json", dict(config={}, git_commit=None))
    message = refused(DEMO, f"--config.stages.warmup.init_from={tmp_path}")
    assert (
        f"{tmp_path} is the folder of a whole run; name the folder of one of its stages" in message
        and message.endswith(": done\n")
    )


def made_checkpoint(folder):
    """A checkpoint of the shipped base."""
    checkpoint.write_params(folder, models.load_hf(models.SHIPPED / "arithmetic_base")[1])
    return folder


def test_a_damaged_checkpoint_to_begin_with(refused, tmp_path):
    folder = made_checkpoint(tmp_path / "base[1]" / "checkpoints" / "0")
    for file, position in (("_METADATA", 100), ("manifest.ocdbt", 50), ("ocdbt.process_0/manifest.ocdbt", 50)):
        path = folder / "params" / file
        whole = path.read_bytes()
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        message = refused(DEMO, f"--config.stages.warmup.init_from={tmp_path / 'base[1]'}")
        assert f"{path} is damaged: its bytes 0 to {len(whole):,} are not those that were saved" in message
        assert f"Restore {folder} from a copy, or name another checkpoint" in message
        path.write_bytes(whole)


def test_checkpoints_of_finished_stages_that_are_gone(tmp_path):
    """What an unfinished stage will read must be there when the command begins; what no stage reads any more may be gone."""
    config, tree = recipe.load(DEMO.partition("=")[2])

    def finish(name, selected, last):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "DONE", dict(selected_step=selected, last_step=last))

    def said():
        with pytest.raises(InputError) as caught:
            prepare.check_checkpoints(config, tmp_path)
        return str(caught.value)

    def there(name, step):
        (tmp_path / name / "checkpoints" / str(step) / "params").mkdir(parents=True)

    prepare.check_checkpoints(config, tmp_path)
    finish("warmup", 4, 8)
    for step, what in ((8, "ended with"), (4, "chose")):  # sft goes on with the last, reft begins with the chosen one
        message = said()
        assert (
            f"{tmp_path}/warmup/checkpoints/{step}: the checkpoint that the finished stage warmup {what} is gone"
            in message
        )
        assert f"remove {tmp_path}/warmup and run the same command again" in message
        there("warmup", step)
    prepare.check_checkpoints(config, tmp_path)
    finish("sft", 3, 9)
    assert (
        f"{tmp_path}/sft/checkpoints/3: the checkpoint that the finished stage sft chose is gone" in said()
    )  # evaluate
    write(tmp_path / "results.json", dict(stages=dict(sft={})))
    prepare.check_checkpoints(config, tmp_path)
    finish("reft", 1, 1)
    write(tmp_path / "results.json", dict(stages=dict.fromkeys(("base", "warmup", "sft", "reft"), {})))
    shutil.rmtree(tmp_path / "warmup" / "checkpoints")
    prepare.check_checkpoints(config, tmp_path)
    # adapters are merged into the chain that they began with
    tree["model"]["lora"] = dict(rank=2, alpha=2.0, targets=".*")
    tree["stages"]["evaluate"]["checkpoints"] = dict(more="reft")
    config = recipe.build(tree)
    there("reft", 1)
    assert "warmup chose is gone" in said()


# ------------------------------------------------------------------ the data


def test_missing_files(refused, tmp_path):
    path = write(tmp_path / "train.json", records())
    message = refused(svamp(tmp_path / "none.json"))
    assert str(tmp_path / "none.json") in message and "No such file" in message
    message = refused(svamp(path, tmp_path / "none.json"))
    assert str(tmp_path / "none.json") in message
    message = refused(svamp(tmp_path))
    assert str(tmp_path) in message and "directory" in message
    assert "config.data.train_file" in refused(svamp(""))


@pytest.mark.parametrize("text, line, part", [
    ("", 1, "empty"),
    (" \n\n", 1, "empty"),
    ("[]", 1, "empty"),
    ("[\n{},\n", 3, "malformed JSON"),
    ('[\n {"item_id": "q_0",\n  "question": broken}\n]', 3, "malformed JSON"),
    ('{"item_id": "q_0"}\n{"item_id": \n', 2, "malformed JSON"),
    ('[\n 1\n]', 2, "number 1"),
])  # fmt: skip
def test_malformed_and_empty_files(refused, tmp_path, text, line, part):
    path = write(tmp_path / "train.json", text)
    message = refused(svamp(path))
    assert f"{path}:{line}: " in message and part in message


@pytest.mark.parametrize("field", ["item_id", "question", "answer_value", "answer_cot"])
def test_a_record_without_a_field(refused, tmp_path, field):
    rows = records()
    del rows[7][field]
    path = write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, rows)))
    message = refused(svamp(path))
    assert f"{path}:8: the record has no field {field!r}" in message


def test_values_of_the_wrong_kind(refused, tmp_path):
    path = write(
        tmp_path / "train.jsonl",
        "\n".join(map(json.dumps, records(39) + records(1, item_id="last", answer_value="six"))),
    )
    message = refused(svamp(path))
    assert f"{path}:40: answer_value is" in message and "six" in message and "number" in message
    path = write(tmp_path / "nl.jsonl", "\n".join(map(json.dumps, records(answer_cot="3 * 2 = 6"))))
    assert f"{path}:1: " in refused(svamp(path)) and "config.data.cot='nl'" in refused(svamp(path))


def test_an_empty_test_set(refused, tmp_path):
    train, test = write(tmp_path / "train.json", records()), write(tmp_path / "test.json", [])
    assert f"{test}:1: the data set is empty" in refused(svamp(train, test))


def test_too_few_records_for_a_dev_split(refused, tmp_path):
    message = refused(svamp(write(tmp_path / "train.json", records(10))))
    assert "config.data.dev_size is 16" in message and "10 records" in message


def test_real_text_that_is_all_too_long(refused, tmp_path):
    path = write(tmp_path / "train.json", [row | dict(question=row["question"] * 20) for row in records()])
    message = refused(
        svamp(path),
        "--config.data.docstring=False",
        "--config.data.max_prompt=30",
        "--config.data.prompt_buckets=(30,)",
    )
    assert "none of 24 records fits" in message and "config.data.max_prompt is 30" in message


def test_gold_answers_that_do_not_grade_as_correct(refused, tmp_path):
    message = refused(svamp(write(tmp_path / "train.json", records(answer_value="7"))))
    assert (
        "24 of 24 gold answers do not grade as correct" in message
        and "q_" in message
        and "max_gold_failures" in message
    )


def test_gsm8k_lines_hold_no_programs(refused, tmp_path):
    path = write(tmp_path / "train.jsonl", json.dumps(dict(question="How many?", answer="3 * 2 = 6\n#### 6")))
    message = refused(svamp(path, data="gsm8k"))
    assert f"{path}:1: " in message and "config.data.cot" in message and "no programs" in message


def test_tokenizers_that_do_not_belong_to_the_data(refused, tmp_path):
    path = write(tmp_path / "train.json", records())
    assert "config.data.tokenizer" in refused(svamp(path), "--config.data.tokenizer=word")
    assert "config.data.vocab_size" in refused(
        svamp(path), "--config.data.vocab_size=256", "--config.data.tokenizer=bpe"
    )


# ------------------------------------------------------------------ the workdir


def test_a_workdir_below_a_file(refused, tmp_path):
    write(tmp_path / "file", "")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "file" / "a" / "b"):
        message = refused(DEMO, workdir=workdir)
        assert f"--workdir={workdir}" in message and "is a file" in message


@pytest.mark.parametrize("workdir", ["/proc/reft_jax_run", "/proc/sys/a/b"])
def test_a_workdir_that_nobody_can_make(refused, workdir):
    if not os.path.isdir("/proc/sys"):
        pytest.skip("no /proc here")
    message = refused(DEMO, workdir=workdir)
    assert f"--workdir={workdir}" in message and not os.path.exists(workdir)


def test_a_workdir_whose_name_is_too_long(refused, tmp_path):
    message = refused(DEMO, workdir=tmp_path / ("x" * 300))
    assert "--workdir=" in message and "too long" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_without_permission(refused, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    assert "not writable" in refused(DEMO, workdir=tmp_path / "closed" / "run")


@pytest.fixture
def mounted(tmp_path):
    """Mounts a tmpfs with these options on a new folder; skips where that is not permitted."""
    folders = []

    def mount(options):
        folder = tmp_path / f"mount{len(folders)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    if shutil.which("mount") is None:
        pytest.skip("no mount command here")
    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_read_only_file_system(refused, mounted):
    folder = mounted("ro")
    for workdir in (folder, folder / "a" / "run"):
        assert f"--workdir={workdir}" in refused(DEMO, workdir=workdir)


def test_a_folder_of_something_else(refused, tmp_path):
    (tmp_path / "photos").mkdir()
    write(tmp_path / "photos" / "a.txt", "mine")
    assert "holds other files" in refused(DEMO, workdir=tmp_path / "photos")
    for text in ("{", "[]", "{}", '{"config": 3}', '"config"'):
        write(tmp_path / "photos" / "config.json", text)
        message = refused(DEMO, workdir=tmp_path / "photos")
        assert str(tmp_path / "photos" / "config.json") in message and "not the config of a run" in message


@pytest.fixture
def begun(tmp_path) -> pathlib.Path:
    """A copy of a finished smoke run, without its checkpoints."""
    return pathlib.Path(
        shutil.copytree(runs.unbroken(), tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    )


@pytest.mark.parametrize("override, parts", [
    ("seed=1", ["config.seed: there 0, now 1"]),
    ("stages.reft.optim.lr=0.001", ["config.stages.reft.optim.lr: there 0.0003, now 0.001"]),
    ("stages.evaluate.num_samples=2", ["config.stages.evaluate.num_samples: there 4, now 2"]),
    ("data.num_train=128", ["config.data.num_train: there 64, now 128"]),
    ("mesh.rules.embed=()", ["config.mesh.rules.embed: there ['fsdp'], now []"]),
])  # fmt: skip
def test_a_workdir_of_another_config(refused, begun, override, parts):
    message = refused(DEMO, f"--config.{override}", workdir=begun)
    assert f"--workdir={begun}: holds a run of another config" in message
    for part in parts:
        assert part in message
    assert message.count(": there ") == 1


def test_a_workdir_of_another_experiment(refused, begun, tmp_path):
    message = refused(svamp(write(tmp_path / "train.json", records())), workdir=begun)
    assert "config.data.task: there 'arithmetic', now 'svamp'" in message


def test_a_workdir_of_an_older_version(refused, begun):
    path = begun / "config.json"
    about = json.loads(path.read_text())
    about["config"]["rewards"] = about["config"].pop("verifier")
    path.write_text(json.dumps(about | dict(git_commit="0123456789abcdef")))
    message = refused(DEMO, workdir=begun)
    assert f"--workdir={begun}: its run was begun by an older version" in message
    assert (
        "report, tables, samples, convert and init_from read it" in message
        and "git checkout 0123456789abcdef" in message
    )


def test_a_file_of_ones_own_that_changed_under_a_run(refused, begun, tmp_path, capfd):
    own = write(tmp_path / "own.py", "from reft_jax.rewards.terms.right import Term as Term\n")
    path, flag = begun / "config.json", f"--config.stages.reft.rewards.mine.use={own}"
    _, about = main_lib.prepare([DEMO, f"--workdir={tmp_path / 'other'}", flag], Stop())
    capfd.readouterr()
    write(path, json.loads(json.dumps(about)))
    write(own, own.read_text() + "# changed\n")
    (begun / "reft" / "DONE").unlink()  # what is done is not run again
    message = refused(DEMO, flag, workdir=begun)
    assert f"--workdir={begun}: its run was begun with another {own} (it has changed since: SHA-256 " in message


def test_changes_that_corrupt_nothing_are_allowed(begun, capfd):
    changes = [
        "stages.reft.save_every=5",
        "stages.warmup.log_every=7",
        "stages.reft.log_samples=1",
        "verifier.workers=1",
        "mesh.data=2",
        "mesh.fsdp=4",
    ]
    before = {stage: runs.contents(begun / stage) for stage in runs.STAGES}
    assert main_lib.main([DEMO, f"--workdir={begun}", *(f"--config.{change}" for change in changes)]) == 0
    assert "evaluate: done before" in capfd.readouterr().out
    assert before == {stage: runs.contents(begun / stage) for stage in runs.STAGES}


def test_a_stage_that_has_not_begun_may_change(refused, tmp_path, capfd):
    begun = pathlib.Path(shutil.copytree(runs.unbroken(), tmp_path / "run"))
    shutil.rmtree(begun / "evaluate")
    for label in runs.LABELS:
        (begun / label / "predictions.jsonl").unlink()
    (begun / "results.json").unlink()
    main_lib.prepare([DEMO, f"--workdir={begun}", "--config.stages.evaluate.num_samples=2"], Stop())  # not refused
    capfd.readouterr()
    assert "config.stages.sft.dropout" in refused(DEMO, "--config.stages.sft.dropout=0.2", workdir=begun)


def test_a_run_killed_while_it_began_is_no_stranger(tmp_path, monkeypatch, capfd):
    """Whatever the first writes left behind, the same command goes on."""

    class Killed(BaseException):
        pass

    def kill(*args):
        raise Killed

    argv = [DEMO, f"--workdir={tmp_path / 'run'}"]
    for module, name in ((metrics.os, "replace"), (metrics, "write_json"), (tokenizers, "save")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, kill)
            with pytest.raises(Killed):
                main_lib.main(argv)
        main_lib.prepare(argv, Stop())  # not refused
    capfd.readouterr()


def test_a_second_process_is_kept_out(refused, begun):
    with lock.Lock(begun) as held:
        held.take_if_there()
        assert "another process is running" in refused(DEMO, workdir=begun)


def test_a_second_process_is_told_before_jax_and_data_are_touched(begun):
    code = f"""
import sys
from reft_jax import main
code = main.main(["--config=no_such_file.py", "--workdir={begun}"])
sys.exit(3 if "jax" in sys.modules or "reft_jax.tasks" in sys.modules else code)
"""
    with lock.Lock(begun) as held:
        held.take_if_there()
        done = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "another process is running in it" in done.stderr, done.stderr
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True)
    assert "no file 'no_such_file.py'" in done.stderr  # the lock is free again


@pytest.mark.parametrize("number", ["ENOSYS", "EOPNOTSUPP", "ENOLCK", "EBADF"])
def test_a_file_system_without_locks(number, tmp_path, monkeypatch, capsys):
    def refuse(handle, how):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock.Lock(tmp_path / "run") as held:
        held.take_if_there()
        held.make_and_take()
    said = capsys.readouterr().err
    assert (tmp_path / "run").is_dir() and said.count("warning: ") == 1
    assert f"--workdir={tmp_path / 'run'}: its file system has no locks" in said


def test_a_file_system_without_fsync_or_permissions(tmp_path, monkeypatch):
    def refuse(number):
        def call(*args, **kwargs):
            raise OSError(number, os.strerror(number))

        return call

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    metrics.write_text(tmp_path / "a", "b")
    monkeypatch.setattr(pathlib.Path, "chmod", refuse(errno.EPERM))
    models.hf._write(tmp_path / "w.safetensors", {"x": np.zeros(2, np.float32)})
    assert (tmp_path / "a").read_text() == "b" and (tmp_path / "w.safetensors").stat().st_size > 8
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))  # it was not written
    with pytest.raises(OSError, match="Input/output"):
        metrics.write_text(tmp_path / "a", "c")


def test_another_config_says_what_may_change_and_how_to_go_on(refused, begun):
    (begun / "reft" / "checkpoints" / "20").mkdir(parents=True)
    message = refused(DEMO, "--config.stages.reft.optim.lr=0.001", workdir=begun)
    may_change = message.partition("a stage that has begun keeps all its settings but ")[2]
    for name in ("mesh.data", "verifier.workers", "logging.wandb", "log_every", "save_every", "log_samples"):
        assert f"{name}," in may_change or f" {name};" in may_change, message
    assert "; its epochs may grow where its learning rate is not planned over them" in may_change
    assert f"--config.stages.reft.init_from={begun / 'reft'} goes on from the weights" in message


@pytest.mark.parametrize(
    "file, text, said",
    [
        ("results.json", "", "the file is empty; remove it, and the same command evaluates again"),
        ("results.json", '{"stages": null}', "stages is None, not a group of results"),
        ("results.json", '{"stages": {}, "stages": {}}', "the key 'stages' stands twice"),
        ("results.json", '{"stages": {"reft": null}}', "stages.reft is None, not a group of figures; remove it"),
        ("reft/DONE", "{}", "selected_step is None, not a step; remove it, and the stage goes on"),
        ("reft/DONE", '{"selected_step', ":1: malformed JSON"),
        ("reft/DONE", '{"selected_step": null}', "selected_step is None, not a step; remove it, and the stage goes on"),
        ("config.json", "", "the file is empty; so it is not the config of a run"),
        ("config.json", '{"config": null}', "not the config of a run"),
        ("config.json", '{"config": {"stages": null}}', "not the config of a run"),
    ],
)
def test_a_damaged_file_of_the_run(refused, begun, file, text, said):
    write(begun / file, text)
    message = refused(DEMO, workdir=begun)
    assert str(begun / file) in message and said in message


def test_a_file_where_a_stage_s_folder_belongs(refused, begun):
    shutil.rmtree(begun / "reft")
    write(begun / "reft", "")
    assert f"{begun / 'reft'}: is a file, where the folder of stage reft belongs" in refused(DEMO, workdir=begun)


@pytest.mark.parametrize("below", [".", "run/a"])
def test_a_workdir_that_is_a_link_to_nothing(refused, tmp_path, below):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    message = refused(DEMO, workdir=tmp_path / "link" / below)
    assert f"{tmp_path / 'link'} is a link to {tmp_path / 'gone'}, which is not there" in message


def test_a_key_that_stands_twice(refused, tmp_path):
    line = json.dumps(RECORD)
    twice = line[:-1] + ', "answer_value": "7"}'
    path = write(tmp_path / "train.jsonl", f"{line}\n{twice}\n")
    assert f"{path}:2: the key 'answer_value' stands twice in one object" in refused(svamp(path))
    path = write(tmp_path / "list.json", f"[{line},\n{twice}]")
    assert f"{path}:2: the key 'answer_value' stands twice in one object" in refused(svamp(path))


@pytest.mark.parametrize("flag", ["logging.wandb=offline", "logging.wandb=online"])
def test_a_folder_of_a_packages_name_is_not_the_package(refused, tmp_path, monkeypatch, flag):
    """`wandb/`, as a run of W&B leaves it where it was started, and the package is not installed."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "wandb.py").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if not os.path.isdir(f"{path}/wandb"))])
        patch.delitem(sys.modules, "wandb", raising=False)
        message = refused(DEMO, f"--config.{flag}")
        assert "wandb is not installed; " in message and f"{tmp_path / 'wandb'} is a folder, not the package" in message
        patch.setattr(sys, "path", [str(tmp_path / "hidden"), *sys.path])
        patch.delitem(sys.modules, "wandb", raising=False)
        message = refused(DEMO, f"--config.{flag}")
        assert f"{tmp_path / 'hidden' / 'wandb.py'} is not the package wandb: it has no init" in message
    sys.modules.pop("wandb", None)


# ------------------------------------------------------------------ a full disk


def fill(folder: pathlib.Path) -> pathlib.Path:
    """A file that takes all the space that is left there."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 14))
        except OSError as error:
            assert error.errno == 28
    return ballast


@pytest.mark.slow
def test_a_full_disk(mounted):
    """A clear error and exit code 1; with space again, the same command ends as if nothing had happened."""
    folder = mounted("size=200m")
    workdir = folder / "run"
    process = runs.start(workdir)
    try:
        runs.wait_until(process, lambda: (workdir / "warmup" / "checkpoints" / "4").is_dir(), workdir)
        ballast = fill(folder)
        assert process.wait(runs.TIMEOUT) == 1, "no exit code 1"
    finally:
        runs.end(process)
    ballast.unlink()
    printed = runs.log(workdir)
    assert printed.count("error: ") == 1 and "the disk is full" in printed and "same command" in printed
    assert "Traceback" not in printed and "complete" in printed.rpartition("error: ")[2]
    runs.params(workdir / "warmup")  # the last checkpoint is whole
    runs.run(workdir)
    runs.assert_same_run(runs.unbroken(), workdir)


# ------------------------------------------------------------------ Hugging Face directories


@pytest.fixture
def model_directory(tmp_path):
    """A good Hugging Face directory to spoil: the shipped base."""
    return shutil.copytree(models.SHIPPED / "arithmetic_base", tmp_path / "model")


def on(directory):
    return f"--config={runs.ROOT / 'configs/reft.py'}:smoke,data=arithmetic,model={directory}"


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_directory_without_config_json(refused, model_directory):
    (model_directory / "config.json").unlink()
    said = refused(on(model_directory))
    assert "config.model.directory" in said and "config.json" in said and str(model_directory) in said


def test_an_unsupported_model_type(refused, model_directory):
    change_config(model_directory, model_type="bloom")
    said = refused(on(model_directory))
    assert "model_type 'bloom' is not supported" in said
    for family in ("codegen", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "opt", "qwen2", "qwen3"):
        assert family in said


def test_a_truncated_safetensors_file(refused, model_directory):
    file = model_directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    said = refused(on(model_directory))
    assert str(file) in said and "cut short" in said


def test_a_shard_that_the_index_names_and_that_is_not_there(refused, model_directory):
    names = {"model.norm.weight": "model-00002-of-00002.safetensors", "model.embed_tokens.weight": "model.safetensors"}
    write(model_directory / "model.safetensors.index.json", dict(weight_map=names))
    said = refused(on(model_directory))
    assert "names files that are not there: model-00002-of-00002.safetensors" in said


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows(refused, model_directory):
    change_config(model_directory, vocab_size=100)
    said = refused(on(model_directory))
    assert "ids and the model's vocabulary 100" in said


def test_weights_of_other_sizes(refused, model_directory):
    change_config(model_directory, intermediate_size=300)
    said = refused(on(model_directory))
    assert "model.layers.0.mlp.gate_proj.weight has shape (352, 128), not (300, 128)" in said


def test_pickled_weights(refused, model_directory):
    (model_directory / "model.safetensors").rename(model_directory / "pytorch_model.bin")
    assert "only pytorch_model.bin" in refused(on(model_directory))


def test_more_tokens_than_learned_positions(refused):
    said = refused(
        f"--config={runs.ROOT / 'configs/reft.py'}:smoke,data=arithmetic,model=tiny",
        "--config.model.arch.positions=learned",
        "--config.model.arch.max_positions=80",
    )
    assert "got 86; the model has 80 positions" in said


@pytest.mark.parametrize("targets, gated", [("mlp.gat", True), ("embed", True), ("mlp.gate", False)])
def test_adapters_that_would_adapt_nothing(refused, targets, gated):
    lora = dict(rank=2, alpha=1.0, targets=targets)
    said = refused(
        f"--config={runs.ROOT / 'configs/reft.py'}:smoke,data=arithmetic,model=tiny",
        f"--config.model.lora={lora}",
        f"--config.model.arch.gated={gated}",
    )
    assert f"got {targets!r}; it matches no matrix of this model (attention.q" in said
