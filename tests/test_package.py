"""The commands by name. The wheel: what is in it, that it runs without the checkout, and what it does not ask for."""

import subprocess
import sys
import zipfile

import pytest

import reft_jax
from tests import runs

IMPORTED = """
import sys
import reft_jax, reft_jax.main, reft_jax.config, reft_jax.models, reft_jax.stages.reft, reft_jax.rewards.score
import reft_jax.configs.common
assert sys.argv[1] in reft_jax.__path__[0], reft_jax.__path__
heavy = {"torch", "tensorflow", "tensorflow_datasets", "libtpu"} & set(sys.modules)
assert not heavy, heavy
from reft_jax.models import hf
assert (hf.SHIPPED / "arithmetic_base" / "model.safetensors").exists()
"""
LISTED = """
import sys
from reft_jax import __main__ as reft
reft.main()
assert not {"jax", "numpy", "ml_collections"} & set(sys.modules)
"""
COMMANDS = ["compile", "convert", "doctor", "fetch", "report", "rescore", "run", "tables"]


def call(*command, cwd=runs.ROOT, env=None) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=runs.TIMEOUT)


def listed(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_reft_lists_its_commands_and_imports_nothing_for_it(arguments):
    done = call(sys.executable, "-c", LISTED, *arguments)
    assert done.returncode == 0, done.stderr
    assert listed(done.stdout) == COMMANDS and "  run      Runs a config's stages in order\n" in done.stdout


def test_reft_asks_for_the_command_that_was_meant():
    done = call(sys.executable, "-m", "reft_jax", "tabels", "runs")
    assert done.returncode == 2 and not done.stdout and listed(done.stderr) == COMMANDS
    assert done.stderr.startswith("error: unknown command 'tabels'; did you mean 'tables'?")


def test_reft_is_the_module_of_that_name():
    arguments = ["--from=nowhere", "--to=x"]
    ours = call(sys.executable, "-m", "reft_jax", "convert", *arguments)
    its = call(sys.executable, "-m", "reft_jax.convert", *arguments)
    assert ours.returncode == its.returncode == 2 and ours.stderr == its.stderr != ""


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone_and_works_without_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", runs.ROOT, source], check=True)  # building writes beside setup.py
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([*pip, "wheel", *options, source], check=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
        [scripts] = [archive.read(name).decode() for name in names if name.endswith("/entry_points.txt")]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"reft_jax"}
    assert len(set(names)) == len(names)
    assert "reft_jax/assets/arithmetic_base/model.safetensors" in names
    configs = {f"reft_jax/configs/{path.name}" for path in (source / "configs").glob("*.py")}
    assert configs == {name for name in names if "configs/" in name} and "reft_jax/configs/demo.py" in configs
    assert scripts.split() == ["[console_scripts]", "reft", "=", "reft_jax.__main__:main"]
    assert f"Version: {reft_jax.__version__}\n" in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(needed) > 10 and not any("torch" in line or "tensorflow" in line for line in needed)

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, cwd=tmp_path)
    environment = runs.environment() | {"PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", IMPORTED, str(site)], check=True, cwd=tmp_path, env=environment)

    def reft(*arguments) -> str:
        done = call(site / "bin" / "reft", *arguments, cwd=tmp_path, env=environment)
        return done.stdout + done.stderr

    assert listed(reft("--help")) == COMMANDS
    assert "--config=FILE" in reft("run", "--help")
    (tmp_path / "mine.py").write_text("import beside\n")
    (tmp_path / "beside.py").write_text("raise ValueError('here we are')\n")
    assert "ValueError: here we are" in reft("compile", "--config=mine.py", "--topology=cpu:1")
