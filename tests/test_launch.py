"""The README's two commands, their pins and the package's metadata.

The scripts run here in a copy of the project with a make-believe Python that records what it is asked for, so that
nothing is installed: what is tested is when they install, what they ask pip for, and what becomes of signals and exit
codes.  Real installations are what .ci/run begins with.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

import reft_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ["launch/demo.sh", "launch/test.sh", "launch/setup_env.sh", ".ci/run"]

# Answers as an interpreter, as an environment's interpreter, as pip and as the program that is launched at last.
FAKE_PYTHON = """\
#!/bin/bash
case "$*" in
--version) echo "Python 3.11.0" ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv >>"$FAKE_LOG" ;;
"-m pip install "*)
    echo "pip ${*:3}" >>"$FAKE_LOG"
    case "$*" in *"$FAKE_PIP_FAILS"*) echo "ERROR: no such thing" && exit 1 ;; esac
    touch "$(dirname "$0")/installed" ;;
"-m "*)
    trap 'exit 75' TERM
    printf 'run %s\\n' "$*" "in $PWD" "with $GLIBC_TUNABLES" >>"$FAKE_LOG"
    if [ -n "$FAKE_WAITS" ]; then sleep 20 >/dev/null 2>&1 & wait; fi
    case "$*" in *"$FAKE_EXIT_OF"*) exit "${FAKE_EXIT:-0}" ;; esac ;;
"-I - "*) test -e "$(dirname "$0")/installed" ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    """A copy of the launch files in a folder with a space, and `run(script, *args, **env) -> (process, log lines)`."""
    root = tmp_path / "a project"
    (root / "reft_jax").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "launch", root / "launch")
    fake, log = tmp_path / "python", tmp_path / "log"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    known = {"PATH": os.environ["PATH"], "PYTHON": str(fake), "FAKE_LOG": str(log), "FAKE_PIP_FAILS": "nothing"}

    def run(script, *args, cwd=tmp_path, **env):
        log.write_text("")
        command = ["bash", root / "launch" / script, *args]
        process = subprocess.run(command, env=known | env, cwd=cwd, capture_output=True, text=True, timeout=60)
        return process, log.read_text().splitlines()

    run.root, run.env, run.log = root, known, log
    return run


def installs(log):
    return [line for line in log if line.startswith("pip ")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_clean(script):
    subprocess.run(["bash", "-n", ROOT / script], check=True, timeout=30)
    if script != "launch/setup_env.sh":  # that one is sourced
        assert os.access(ROOT / script, os.X_OK)
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, found.stdout


def test_demo_installs_once_then_runs(project):
    process, log = project("demo.sh")
    assert process.returncode == 0, process.stderr
    assert log[0] == "venv" and len(installs(log)) == 2
    builder, itself = installs(log)
    assert "setuptools" in builder and itself.endswith("-e .")  # neither torch nor the tests' needs
    assert all("-c launch/constraints.txt" in line for line in installs(log))
    assert f"run -m reft_jax.main --config=configs/demo.py --workdir={project.root}/runs/demo" in log
    assert f"run in {project.root}" in log
    assert any(line.startswith("run with glibc.malloc.") for line in log)

    process, log = project("demo.sh")
    assert process.returncode == 0 and not installs(log) and "venv" not in log
    assert "Ctrl-C" in process.stderr and "Installing" not in process.stderr


def test_demo_passes_workdir_flags_and_exit_code(project, tmp_path):
    process, log = project("demo.sh", "my runs/one", "--config.seed=3", FAKE_EXIT="75")
    assert process.returncode == 75
    command = f"run -m reft_jax.main --config=configs/demo.py --workdir={tmp_path}/my runs/one --config.seed=3"
    assert command in log
    process, log = project("demo.sh", "--config.seed=4", cwd="/", GLIBC_TUNABLES="glibc.malloc.check=1")
    assert any(line.endswith("runs/demo --config.seed=4") for line in log)
    assert "run with glibc.malloc.check=1" in log
    process, log = project("demo.sh", "here", cwd="/")
    assert any(line.endswith("--workdir=/here") for line in log)
    process, log = project("demo.sh", "here", "--dry-run")  # before anything is installed
    assert process.returncode == 2 and "unknown argument '--dry-run'" in process.stderr and not log
    process, log = project("demo.sh", "--help")
    assert process.returncode == 0 and "bash launch/demo.sh [workdir]" in process.stdout and not log


LAUNCHED = sorted(
    str(path.relative_to(ROOT / "launch"))
    for pattern in ("*.sh", "*/*.sh", "*/*.sbatch")
    for path in (ROOT / "launch").glob(pattern)
    if path.name not in ("lib.sh", "setup_env.sh")  # which are sourced
)


@pytest.mark.parametrize("script", LAUNCHED)
def test_help_is_printed_at_once_and_nothing_is_installed(project, script):
    for arguments in (["--help"], ["-h"]):
        process, log = project(script, *arguments, cwd=project.root, HOME=str(project.root))
        assert process.returncode == 0 and not process.stderr and not log
        assert f"launch/{script}" in process.stdout and "set -" not in process.stdout
        assert not (project.root / ".venv").exists()


@pytest.mark.parametrize("script", [script for script in LAUNCHED if script not in ("demo.sh", "test.sh")])
def test_an_unknown_option_is_one_error(project, script):
    process, log = project(script, "--nonsense", cwd=project.root, HOME=str(project.root))
    assert process.returncode == 2 and process.stderr.startswith("error: ") and not process.stdout and not log


def test_a_home_is_spelt_out(project, tmp_path):
    process, log = project("demo.sh", "~/runs/one", HOME="/home/one")
    assert any("--workdir=/home/one/runs/one" in line for line in log)
    local = ["--processes", "1", "--devices", "1", "--", "--config=none", "--workdir=~/deep/run"]
    process, _ = project("local.sh", *local, HOME=str(tmp_path), PYTHON=sys.executable)
    assert process.returncode == 2 and (tmp_path / "deep").is_dir() and not (tmp_path / "~").exists()


def test_a_signal_to_the_script_reaches_the_run(project):
    project("demo.sh")
    project.log.write_text("")
    command = ["bash", project.root / "launch" / "demo.sh"]
    with subprocess.Popen(command, env=project.env | {"FAKE_WAITS": "yes"}, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 15
        while "run in" not in project.log.read_text() and time.monotonic() < until:
            time.sleep(0.02)
        process.terminate()
        assert process.wait(timeout=15) == 75


def test_test_adds_its_extra_and_tries_torch(project):
    project("demo.sh")
    process, log = project("test.sh", "-k", "a and b", FAKE_EXIT="5")
    assert process.returncode == 5
    _, itself, torch = installs(log)
    assert "venv" not in log and itself.endswith("-e .[test]") and torch.endswith("torch==2.13.0+cpu")
    assert "run -m pytest -k a and b" in log
    assert not installs(project("test.sh")[1])
    assert not installs(project("demo.sh")[1])  # what has the extra can also run the demo


def test_no_torch_is_said_but_no_failure(project):
    process, log = project("test.sh", FAKE_PIP_FAILS="torch")
    assert process.returncode == 0 and "skip themselves" in process.stderr
    assert not installs(project("test.sh", FAKE_PIP_FAILS="torch")[1])


def test_failed_installation_is_shown_and_made_anew(project):
    process, log = project("demo.sh", FAKE_PIP_FAILS="-e .")
    assert process.returncode == 1 and "ERROR: no such thing" in process.stderr and "setup.log" in process.stderr
    assert not any(line.startswith("run") for line in log)
    process, log = project("demo.sh")
    assert process.returncode == 0 and "half-made" in process.stderr and "venv" in log and len(installs(log)) == 2


def test_a_failed_addition_spares_what_was_there(project):
    project("demo.sh")
    process, log = project("test.sh", FAKE_PIP_FAILS=".[test]")  # say, without a network
    assert process.returncode == 1 and not any(line.startswith("run") for line in log)
    process, log = project("demo.sh")
    assert process.returncode == 0 and "venv" not in log and not installs(log)


def test_broken_environments_are_repaired(project):
    (project.root / ".venv").mkdir()  # killed in the first moment
    process, log = project("demo.sh")
    assert process.returncode == 0 and "venv" in log
    (project.root / ".venv" / "bin" / "python").unlink()
    process, log = project("demo.sh")
    assert process.returncode == 0 and "venv" in log
    (project.root / ".venv" / "bin" / "installed").unlink()  # the Python works, the packages are gone
    process, log = project("demo.sh")
    assert process.returncode == 0 and "venv" not in log and len(installs(log)) == 2


def test_changed_pins_are_installed(project):
    project("demo.sh")
    with (project.root / "launch" / "constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    process, log = project("demo.sh")
    assert "venv" not in log and len(installs(log)) == 2
    assert not installs(project("demo.sh")[1])


def test_no_suitable_python_is_said(project, tmp_path):
    old = tmp_path / "old"
    old.write_text("#!/bin/bash\nexit 1\n")
    old.chmod(0o755)
    process, _ = project("demo.sh", PYTHON=str(old))
    assert process.returncode == 1 and "no Python 3.11 or newer" in process.stderr and str(old) in process.stderr
    assert not (project.root / ".venv").exists()


@pytest.fixture
def ci(project, tmp_path):
    """Runs .ci/run in the project: `ci(**env) -> (process, log lines)`."""
    shutil.copytree(ROOT / ".ci", project.root / ".ci")
    for browser in ("chromium", "chromedriver"):  # looked for, not run
        (tmp_path / browser).touch(0o755)
    return lambda **env: project("../.ci/run", PATH=f"{tmp_path}:{os.environ['PATH']}", **env)


@pytest.mark.parametrize(
    "of, code, expected, steps",
    [
        ("nothing", 1, 0, "set-up, lint, quick tests, slow tests, total"),
        ("ruff", 3, 3, "set-up, lint (failed), total"),
        ("-m not slow", 1, 1, "set-up, lint, quick tests (failed), total"),
        ("-m slow", 1, 1, "set-up, lint, quick tests, slow tests (failed), total"),
        ("-m slow", 5, 1, "set-up, lint, quick tests, slow tests (failed), total"),  # pytest found none
    ],
)
def test_ci_stops_at_what_fails_and_says_how_long_each_step_took(ci, of, code, expected, steps):
    process, log = ci(FAKE_EXIT_OF=of, FAKE_EXIT=str(code))
    assert process.returncode == expected, process.stderr
    assert re.sub(r" \d+\.\d\b", "", process.stdout.splitlines()[-1]) == f"minutes: {steps}"
    assert ("no slow test was found" in process.stderr) == (code == 5)
    commands = ["ruff check .", "pytest -m not slow -n 2 --dist loadfile", "pytest -m slow -n 2 --dist loadfile"]
    ran = [line.removeprefix("run -m ") for line in log if line.startswith("run -m ")]
    assert ran == commands[: steps.count(",") - 1]


def test_ci_says_what_a_failed_installation_took(ci):
    process, _ = ci(FAKE_PIP_FAILS=".[test]")
    assert process.returncode == 1
    assert re.fullmatch(r"minutes: set-up \d+\.\d \(failed\), total \d+\.\d", process.stdout.strip())


def constraints():
    text = (ROOT / "launch" / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), lines
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines), "a package is pinned twice"
    return pins


def test_every_requirement_is_pinned_and_torch_is_no_run_time_one(tmp_path):
    """setup.py, run with a stand-in for setuptools that hands its arguments back."""
    (tmp_path / "setuptools.py").write_text(
        "import json\ndef find_packages(**kwargs): return []\ndef setup(**kwargs): print(json.dumps(kwargs))\n"
    )
    code = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path('setup.py')"
    output = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    arguments = json.loads(output)
    assert arguments["name"] == "reft_jax" and arguments["license"] == "Apache-2.0"
    assert arguments["version"] == reft_jax.__version__
    run_time = {re.split(r"[\[<>=;]", requirement)[0].strip() for requirement in arguments["install_requires"]}
    extras = {re.split(r"[\[<>=;]", r)[0].strip() for extra in arguments["extras_require"].values() for r in extra}
    assert not run_time & {"torch", "tensorflow"}
    assert set(arguments["extras_require"]) == {
        "test",
        "parity",
        "qlora",
        "gguf",
        "tfds",
        "wandb",
        "hf",
        "report",
        "gpu",
        "tpu",
    }
    pins = constraints()
    assert run_time | extras | {"setuptools"} <= set(pins)
    for requirement in [*arguments["install_requires"], *sum(arguments["extras_require"].values(), [])]:
        name, lowest = re.fullmatch(r"([a-z0-9-]+)(?:\[\w+\])?>=([0-9.]+)(?:; .*)?", requirement).groups()
        assert [int(n) for n in pins[name].split(".")] >= [int(n) for n in lowest.split(".")], requirement


def test_assets_travel_with_the_package(tmp_path):
    pytest.importorskip("setuptools")
    asset = tmp_path / "reft_jax" / "assets" / "base" / "model.safetensors"
    asset.parent.mkdir(parents=True)
    asset.write_bytes(b"weights")
    for package in ("reft_jax", "reft_jax/losses", "tests"):
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "reft_jax" / "__init__.py").write_text('__version__ = "1.0"\n')
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.py").touch()
    (tmp_path / "reft_jax" / "configs").symlink_to("../configs")
    shutil.copy(ROOT / "setup.py", tmp_path)
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "built"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    folder = tmp_path / "built"
    built = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    code = {"reft_jax/__init__.py", "reft_jax/losses/__init__.py", "reft_jax/configs/demo.py"}
    assert built == code | {"reft_jax/assets/base/model.safetensors"}
