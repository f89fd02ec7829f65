"""The wheel: what is in it, that it installs and runs without the checkout, and what it does not ask for."""

import subprocess
import sys
import zipfile

import pytest

from tests import runs

IMPORTED = """
import sys
import reft_jax, reft_jax.main, reft_jax.config, reft_jax.models, reft_jax.stages.reft, reft_jax.rewards.score
assert sys.argv[1] in reft_jax.__path__[0], reft_jax.__path__
heavy = {"torch", "tensorflow", "tensorflow_datasets", "libtpu"} & set(sys.modules)
assert not heavy, heavy
from reft_jax.models import hf
assert (hf.SHIPPED / "arithmetic_base" / "model.safetensors").exists()
"""


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
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"reft_jax"}
    assert "reft_jax/assets/arithmetic_base/model.safetensors" in names
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(needed) > 10 and not any("torch" in line or "tensorflow" in line for line in needed)

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, cwd=tmp_path)
    command = [sys.executable, "-c", IMPORTED, str(site)]
    subprocess.run(command, check=True, cwd=tmp_path, env=runs.environment() | {"PYTHONPATH": str(site)})
