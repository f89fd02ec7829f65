"""The scripts for clouds and clusters, against make-believe gcloud, kubectl, xpk, srun, scontrol and nvidia-smi.

The tools on PATH record what they are called with and answer as files tell them; gcloud can also carry a --command out on two
"hosts" (folders), through a shell as ssh does. No test sees a cloud: what only a cloud can show is listed in launch/README.md.
"""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from tests.test_launch import FAKE_PYTHON

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("tpu_vm", "gke", "gpu")
    for path in (ROOT / "launch" / folder).iterdir()
    if path.suffix in (".sh", ".sbatch")
)
TOOLS = ("gcloud", "kubectl", "xpk", "srun", "sbatch", "scontrol", "squeue", "nvidia-smi")

# states, statuses: one answer a line, the last one for good. hosts/: where a --command is carried out, if it is there.
FAKE_TOOL = """\
#!{python} -IS
import json, os, pathlib, subprocess, sys
here = pathlib.Path(os.environ["FAKE"])
tool, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(here / "calls", "a") as file:
    file.write(json.dumps([tool, *argv]) + "\\n")
def answer(name, default):
    path = here / name
    lines = path.read_text().splitlines() if path.exists() else [default]
    if len(lines) > 1:
        path.write_text("\\n".join(lines[1:]))
    return lines[0]
command = [word.removeprefix("--command=") for word in argv if word.startswith("--command=")]
if "describe" in argv:
    state = answer("states", "READY")
    if state in ("ABSENT", "BROKEN"):
        sys.exit("ERROR: NOT_FOUND: Resource was not found" if state == "ABSENT" else "ERROR: the service is not reachable")
    print(state)
elif tool == "gcloud" and command and (here / "hosts").exists():
    codes = [
        subprocess.run(["sh", "-c", command[0]], env=os.environ | {{"HOME": str(home)}}, cwd=home).returncode
        for home in sorted((here / "hosts").iterdir())
    ]
    sys.exit(max(codes))
elif tool == "gcloud" and command and "remote.sh status" in command[0]:
    told = answer("statuses", "")
    if told == "unreachable":
        sys.exit(255)
    for number, word in enumerate(told.split(",")):
        print(f"reft_jax on host-{{number}}: {{word}}")
elif tool == "squeue":
    print(answer("job", "RUNNING"))
elif tool == "kubectl":
    (here / "stdin").write_text(sys.stdin.read())
sys.exit(int(answer(f"code.{{tool}}", "0")))
"""

# A host's interpreter: records what arrives, then does as the host's file `behave` says.
HOST_PYTHON = """\
#!/bin/bash
{python} -IS -c 'import json, os, sys; print(json.dumps([os.environ.get("JAX_COORDINATOR_PORT"), *sys.argv[1:]]))' "$@" >>"$HOME/arrived"
case $(cat "$HOME/behave" 2>/dev/null) in
wait) trap 'kill $!; exit 75' TERM; sleep 30 & wait ;;
hang) trap '' TERM; sleep 30 & wait; sleep 30 ;;
*) exit "$(cat "$HOME/behave")" ;;
esac
"""

SETTINGS = dict(
    PROJECT="a-project",
    ZONE="us-east1-d",
    TPU_NAME="a-tpu",
    ACCELERATOR_TYPE="v5litepod-16",
    RUNTIME_VERSION="v2-alpha-tpuv5-lite",
    PROCESSES="2",
    REPOSITORY="https://example.org/it's mine.git",
    COMMIT="0123abcd",
    REMOTE_DIR="a check'out",
    CLUSTER="a-cluster",
    WORKLOAD="a-run",
    IMAGE="registry.example.org/reft:1",
    TPU_TYPE="v6e-16",
    GKE_ACCELERATOR="tpu-v6e-slice",
    GKE_TOPOLOGY="4x4",
    CHIPS_PER_HOST="4",
    HOSTS_PER_SLICE="4",
    VOLUME_CLAIM="shared",
)
NASTY = [
    "--config=c.py:a=1",
    "--workdir=/mnt/a b",
    '--config.x=\'"$HOME" `id` \\',
    "--config.y=",
    "--config.z=*;&|<$(id)",
]
WHERE = ["--project=a-project", "--zone=us-east1-d"]


@pytest.fixture
def cloud(tmp_path):
    """`cloud(script, *args, **settings) -> finished process`; cloud.calls() is what the tools were called with since."""
    fake = tmp_path / "fake"
    (tmp_path / "bin").mkdir()
    fake.mkdir()
    for tool in TOOLS:
        path = tmp_path / "bin" / tool
        path.write_text(FAKE_TOOL.format(python=sys.executable))
        path.chmod(0o755)

    def run(script, *args, settings=None, stdin="", **env):
        chosen = SETTINGS | (settings or {})
        file = tmp_path / "an env"
        file.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in chosen.items()))
        known = dict(
            PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", HOME=str(tmp_path), FAKE=str(fake), LAUNCH_ENV=str(file)
        )
        command = ["bash", str(ROOT / "launch" / script), *args]
        return subprocess.run(
            command,
            env=known | env,
            cwd=env.pop("cwd", tmp_path),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls():
        path = fake / "calls"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.write_text("")
        return found

    run.calls, run.fake, run.tmp = calls, fake, tmp_path
    return run


@pytest.fixture
def hosts(cloud):
    """Two hosts with a checkout, on which gcloud carries out what it is given."""
    homes = [cloud.fake / "hosts" / f"host {i}" for i in range(2)]
    for home in homes:
        checkout = home / SETTINGS["REMOTE_DIR"]
        shutil.copytree(ROOT / "launch", checkout / "launch")
        python = checkout / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(HOST_PYTHON.format(python=sys.executable))
        python.chmod(0o755)
        (home / "behave").write_text("0")
    return homes


def arrived(home):
    path = home / "arrived"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(what, seconds=10):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def verbs(calls):
    """The calls in short: describe, create, setup, start, status, stop, delete."""
    out = []
    for _, *argv in calls:
        command = next((word for word in argv if word.startswith("--command=")), None)
        if command is None:
            out.append(argv[3])
        else:
            out.append(
                next(name for name in ("setup", "start", "status", "stop", "logs") if f"remote.sh {name}" in command)
            )
    return out


def test_scripts_are_clean():
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", ROOT / script], check=True, timeout=30)
        assert os.access(ROOT / script, os.X_OK)
        assert "set -euo pipefail" in (ROOT / script).read_text()
    if shutil.which("shellcheck"):
        command = ["shellcheck", "-x", "launch/lib.sh", *SCRIPTS]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert found.returncode == 0, found.stdout


# ------------------------------------------------------------------ flags and settings


ALL = [script.removeprefix("launch/") for script in SCRIPTS if not script.endswith("remote.sh")]
RUNS = ("tpu_vm/run.sh", "tpu_vm/babysit.sh", "gke/xpk.sh", "gke/render.sh", "gpu/single.sh", "gpu/slurm.sbatch")


@pytest.mark.parametrize("script", ALL)
def test_wrong_flags_and_help(cloud, script):
    for args in (["--nonsense"], ["stray"], ["--dry-run=1"], [] if script in RUNS else ["--node-count"]):
        process = cloud(script, *args, cwd=ROOT)
        assert process.returncode == 2, process.stderr
        assert (
            process.stderr.count("error:") == 1
            and "\nusage: " in process.stderr
            and f"launch/{script} " in process.stderr
        )
    process = cloud(script, "--help", cwd=ROOT)
    assert process.returncode == 0 and "launch/" in process.stdout
    assert cloud.calls() == []


@pytest.mark.parametrize("script", ALL)
def test_dry_run_prints_and_calls_nothing(cloud, script):
    process = cloud(script, "--dry-run", *(["--", *NASTY] if script in RUNS else []), cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert cloud.calls() == []
    if script == "gke/render.sh":
        return
    for line in process.stdout.splitlines():  # what is printed is what would be called, for a shell to read back
        assert shlex.split(line)[0] in ("gcloud", "xpk", "srun", "env")
    if script in RUNS:
        words = [word for line in process.stdout.splitlines() for word in shlex.split(line)]
        if script.startswith("gpu"):
            assert words[-len(NASTY) :] == NASTY
        else:
            command = next(word for word in words if "--config=c.py" in word)
            assert shlex.split(command)[-len(NASTY) :] == NASTY


@pytest.mark.parametrize(
    "script, missing",
    [
        ("tpu_vm/create.sh", ["ACCELERATOR_TYPE", "RUNTIME_VERSION"]),
        ("tpu_vm/status.sh", ["ZONE", "TPU_NAME"]),
        ("tpu_vm/setup.sh", ["REPOSITORY", "COMMIT"]),
        ("tpu_vm/run.sh", ["PROCESSES"]),
        ("gke/xpk.sh", ["CLUSTER", "IMAGE"]),
        ("gke/render.sh", ["VOLUME_CLAIM", "GKE_TOPOLOGY"]),
    ],
)
def test_missing_settings_are_named(cloud, script, missing):
    args = ["--", "--config=c"] if script in RUNS else []
    process = cloud(script, *args, settings={name: "" for name in missing})
    assert process.returncode == 2 and "an env" in process.stderr and "env.example" in process.stderr
    for name in SETTINGS:
        assert (name in process.stderr.split(". Set it")[0]) == (name in missing)
    assert cloud.calls() == []


def test_the_example_has_every_setting_and_no_value():
    lines = [
        line for line in (ROOT / "launch/env.example").read_text().splitlines() if line and not line.startswith("#")
    ]
    names = {line.split("=")[0] for line in lines}
    assert set(SETTINGS) <= names
    defaults = {line.split("=")[0]: line.split(":-")[1].rstrip("}") for line in lines}
    assert {name: value for name, value in defaults.items() if value} == {"NODE_COUNT": "1", "REMOTE_DIR": "reft_jax"}
    ignored = subprocess.run(["git", "check-ignore", "-q", "launch/env"], cwd=ROOT, check=False)
    assert ignored.returncode in (0, 128)  # 128: no checkout


# ------------------------------------------------------------------ TPU VMs


def test_create(cloud):
    size = ["--accelerator-type=v5litepod-16"]
    assert cloud("tpu_vm/create.sh", "--spot", settings=dict(NETWORK="a net")).returncode == 0
    tpus = ["gcloud", "compute", "tpus"]
    version = "--version=v2-alpha-tpuv5-lite"
    assert cloud.calls() == [[*tpus, "tpu-vm", "create", "a-tpu", *size, version, "--network=a net", "--spot", *WHERE]]
    queue, version = [*tpus, "queued-resources", "create", "a-tpu", *size], "--runtime-version=v2-alpha-tpuv5-lite"
    assert cloud("tpu_vm/queued.sh", "--reserved").returncode == 0
    assert cloud.calls() == [[*queue, version, "--reserved", "--node-id=a-tpu", *WHERE]]
    assert cloud("tpu_vm/queued.sh", "--spot", "--node-count", "3").returncode == 0
    assert cloud.calls() == [[*queue, version, "--spot", "--node-count=3", "--node-prefix=a-tpu", *WHERE]]
    assert cloud("tpu_vm/create.sh", settings=dict(NODE_COUNT="2")).returncode == 2
    assert cloud("tpu_vm/queued.sh", "--spot", "--reserved").returncode == 2
    assert cloud("tpu_vm/queued.sh", "--node-count=0").returncode == 2
    assert cloud.calls() == []


def test_delete_asks(cloud):
    process = cloud("tpu_vm/delete.sh", stdin="n\n")
    assert process.returncode == 1 and "Delete a-tpu in us-east1-d" in process.stderr and cloud.calls() == []
    assert cloud("tpu_vm/delete.sh").returncode == 1 and cloud.calls() == []  # nobody there to ask
    tpus = ["gcloud", "compute", "tpus"]
    assert cloud("tpu_vm/delete.sh", stdin="y\n").returncode == 0
    assert cloud.calls() == [[*tpus, "tpu-vm", "delete", "a-tpu", "--quiet", *WHERE]]
    assert cloud("tpu_vm/delete.sh", "--yes", "--queued").returncode == 0
    assert cloud.calls() == [[*tpus, "queued-resources", "delete", "a-tpu", "--force", "--quiet", *WHERE]]


def test_setup_checks_out_the_commit_and_installs_once(cloud, hosts):
    source = cloud.tmp / "it's a source"
    source.mkdir()
    shutil.copytree(ROOT / "launch", source / "launch")
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    git = ["git", "-C", source, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["commit", "-qm", "two", "--allow-empty"]):
        subprocess.run([*git, *command], check=True, timeout=30)
    first = subprocess.check_output([*git, "rev-parse", "HEAD~"], text=True).strip()
    fake, log = cloud.tmp / "python", cloud.tmp / "log"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    env = dict(PYTHON=str(fake), FAKE_LOG=str(log), FAKE_PIP_FAILS="nothing")
    settings = dict(REPOSITORY=str(source), COMMIT=first[:12], REMOTE_DIR="new dir")
    for _ in range(2):
        process = cloud("tpu_vm/setup.sh", settings=settings, **env)
        assert process.returncode == 0, process.stderr
        assert process.stdout.count(f"set up at {first[:7]}") == 2
    for home in hosts:
        head = subprocess.check_output(["git", "-C", home / "new dir", "rev-parse", "HEAD"], text=True).strip()
        assert head == first
    installs = [line for line in log.read_text().splitlines() if line.startswith("pip ") and "[tpu]" in line]
    assert len(installs) == 2 and all("-c launch/constraints.txt" in line for line in installs)  # once a host
    assert cloud("tpu_vm/setup.sh", settings=settings | dict(COMMIT="main; id")).returncode == 2


def test_arguments_arrive_as_given_on_every_host(cloud, hosts):
    process = cloud("tpu_vm/run.sh", "--", *NASTY, settings=dict(COORDINATOR_PORT="8476"))
    assert process.returncode == 0, process.stderr
    for home in hosts:
        until((home / "reft_run/exit_code").exists)
        assert arrived(home) == [["8476", "-m", "reft_jax.main", "--processes=2", *NASTY]]
        assert "exit code 0" in (home / "reft_run/log").read_text()
    assert cloud("tpu_vm/run.sh", "--", *NASTY, "--processes", "7", settings=dict(PROCESSES="")).returncode == 0
    for home in hosts:
        until(lambda home=home: len(arrived(home)) == 2)
        assert arrived(home)[1] == [None, "-m", "reft_jax.main", *NASTY, "--processes", "7"]


def test_life_of_a_run(cloud, hosts):
    def status(*, args=()):
        return [line.split(": ")[1] for line in cloud("tpu_vm/status.sh", *args).stdout.splitlines()]

    for home in hosts:
        (home / "behave").write_text("wait")
    assert status() == ["READY", "none", "none"]
    assert cloud("tpu_vm/run.sh", "--", "--config=c").returncode == 0
    assert [line.split()[0] for line in status()] == ["READY", "running", "running"]
    again = cloud("tpu_vm/run.sh", "--", "--config=c")
    assert again.returncode != 0 and again.stderr.count("a run is going on") == 2
    until(lambda: all(arrived(home) for home in hosts))
    time.sleep(0.2)  # until the traps are set
    stopped = cloud("tpu_vm/stop.sh", "--timeout", "20")
    assert stopped.returncode == 0 and stopped.stdout.count("ended 75") == 2, stopped.stderr
    assert status() == ["READY", "ended 75", "ended 75"]
    lines = cloud("tpu_vm/logs.sh", "--lines", "1").stdout.splitlines()
    assert len(lines) == 2 and all(line.endswith("exit code 75") and ": == " in line for line in lines)
    (cloud.fake / "states").write_text("PREEMPTED")
    assert status() == ["PREEMPTED"]  # no host is asked


def test_stop_kills_what_does_not_end_only_if_told(cloud, hosts):
    lock = cloud.tmp / "lock"
    lock.write_text("")
    for home in hosts:
        (home / "behave").write_text("hang")
    assert cloud("tpu_vm/run.sh", "--", "--config=c").returncode == 0
    until(lambda: all(arrived(home) for home in hosts))
    time.sleep(0.2)
    process = cloud("tpu_vm/stop.sh", "--timeout", "0", LIBTPU_LOCKFILE=str(lock))
    assert process.returncode == 4 and "--kill" in process.stderr and lock.exists()
    process = cloud("tpu_vm/stop.sh", "--timeout", "0", "--kill", LIBTPU_LOCKFILE=str(lock))
    assert process.returncode == 0 and process.stdout.count(": lost") == 2 and not lock.exists()


def test_several_slices_are_reached_through_the_queue(cloud):
    assert cloud("tpu_vm/stop.sh", settings=dict(NODE_COUNT="2")).returncode == 0
    ((*start, command, project, zone),) = cloud.calls()
    assert start == ["gcloud", "compute", "tpus", "queued-resources", "ssh", "a-tpu", "--node=all", "--worker=all"]
    assert shlex.split(command)[-4:] == ["launch/tpu_vm/remote.sh", "stop", "600", "0"]


# ------------------------------------------------------------------ babysit


def babysit(cloud, states, statuses, *args, **settings):
    (cloud.fake / "states").write_text("\n".join(states))
    (cloud.fake / "statuses").write_text("\n".join(statuses))
    process = cloud("tpu_vm/babysit.sh", "--poll", "0", *args, "--", *NASTY, settings=settings)
    return process, verbs(cloud.calls())


def test_babysit_from_nothing_to_the_end(cloud):
    process, did = babysit(
        cloud,
        ["ABSENT", "CREATING", "READY"],
        ["none,none", "running 7,running 7", "ended 0,ended 0"],
        "--spot",
        "--delete",
    )
    assert process.returncode == 0, process.stderr
    look = ["describe", "status"]
    assert did == ["describe", "create", "describe", *look, "setup", "start", *look, *look, "delete"]


def test_babysit_goes_on_after_75_without_counting_it_as_failure(cloud):
    ends = ["ended 75,ended 75"] * 5
    process, did = babysit(cloud, ["READY"], ["none,none", *ends, "ended 0,ended 0"], "--max-failures", "0")
    assert process.returncode == 0 and did.count("start") == 6
    process, did = babysit(cloud, ["READY"], ["none,none", *ends], "--max-preemptions", "2")
    assert process.returncode == 1 and did.count("start") == 3 and "interrupted more than 2" in process.stderr


def test_babysit_deletes_a_preempted_tpu_and_creates_it_anew(cloud):
    states = ["READY", "PREEMPTED", "DELETING", "ABSENT", "READY", "TERMINATED", "ABSENT", "READY"]
    statuses = ["running 7,running 7", "none,none", "none,none", "ended 0,ended 0"]
    process, did = babysit(cloud, states, statuses, "--max-failures", "0")
    assert process.returncode == 0, process.stderr
    assert did[2:6] == ["describe", "delete", "describe", "describe"] and did.count("create") == 2
    assert did.index("delete") < did.index("create")
    process, did = babysit(cloud, ["UNKNOWN", "ABSENT", "FAILED"], [""], "--max-failures", "1")
    assert process.returncode == 1 and did == ["describe", "delete", "describe", "create", "describe"]
    process, did = babysit(cloud, ["PREEMPTED"], [""], "--max-preemptions", "1")
    assert process.returncode == 1 and did == ["describe", "delete", "describe"]


def test_babysit_gives_up_after_failures_and_at_once_on_bad_input(cloud):
    process, did = babysit(cloud, ["READY"], ["none,none", "ended 1,ended 75"], "--max-failures", "2")
    assert process.returncode == 1 and did.count("start") == 3 and "failed more than 2" in process.stderr
    process, did = babysit(cloud, ["READY"], ["none,none", "ended 2,ended 2"])
    assert process.returncode == 2 and did.count("start") == 1
    # What ended before it began was perhaps another run: this one is started.
    process, did = babysit(cloud, ["READY"], ["ended 2,ended 2", "ended 0,ended 0"])
    assert process.returncode == 0 and did.count("start") == 1


def test_babysit_counts_failed_creation_and_blindness(cloud):
    (cloud.fake / "code.gcloud").write_text("1")
    process, did = babysit(cloud, ["ABSENT"], [""], "--max-failures", "1")
    assert process.returncode == 1 and did.count("create") == 2
    (cloud.fake / "code.gcloud").write_text("0")
    process, did = babysit(
        cloud, ["BROKEN"] * 9 + ["READY"], ["none,none", "unreachable", "ended 0,ended 0"], "--max-failures", "0"
    )
    assert process.returncode == 0, process.stderr  # it passed
    process, did = babysit(cloud, ["BROKEN"], [""], "--max-failures", "0")
    assert process.returncode == 1 and len(did) == 11
    process, did = babysit(cloud, ["READY"], ["running 7"], "--max-failures", "0")
    assert process.returncode == 1 and "1 hosts answer, and PROCESSES=2" in process.stderr


def test_babysit_kills_hosts_that_outlive_the_others(cloud):
    statuses = ["running 7,running 7"] + ["ended 1,running 7"] * 3 + ["ended 1,lost", "ended 0,ended 0"]
    process, did = babysit(cloud, ["READY"], statuses, "--stuck", "3")
    assert process.returncode == 0 and did.count("stop") == 1 and did.count("start") == 1


def test_babysit_uses_the_queue_for_several_slices(cloud):
    process, did = babysit(cloud, ["ABSENT", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "ABSENT", "ACTIVE"],
        ["none,none", "none,none", "ended 0,ended 0"], "--node-count", "2", "--reserved", "--queued")  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert did.count("create") == 2 and did.count("delete") == 1


# ------------------------------------------------------------------ GKE


def test_xpk(cloud):
    assert cloud("gke/xpk.sh", "--num-slices=2", "--", *NASTY).returncode == 0
    ((tool, *argv),) = cloud.calls()
    assert [tool, *argv[:2]] == ["xpk", "workload", "create"]
    assert {
        "--tpu-type=v6e-16",
        "--num-slices=2",
        "--docker-image=registry.example.org/reft:1",
        "--max-restarts=50",
    } <= set(argv)
    assert shlex.split(argv[-1].removeprefix("--command="))[-len(NASTY) - 1 :] == ["--processes=2", *NASTY]


def test_jobset(cloud):
    yaml = pytest.importorskip("yaml")
    words = [*NASTY, "${IMAGE} $(HOME) &"]
    process = cloud("gke/render.sh", "--num-slices", "2", "--", *words)
    assert process.returncode == 0, process.stderr
    jobset = yaml.safe_load(process.stdout)
    job = jobset["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"], job["template"]["spec"]["completions"]) == (
        2,
        4,
        4,
    )
    expanded = [word.replace("$$(", "$(") for word in container["args"]]  # Kubernetes' own escape
    assert expanded == ["--processes=8", *words] and all(
        "$(" not in word.replace("$$(", "") for word in container["args"]
    )
    assert container["image"] == SETTINGS["IMAGE"] and container["resources"]["limits"] == {"google.com/tpu": 4}
    # 75 and preemption go on without counting, 2 is final: rule by rule, as the job's message names them.
    rules = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule.get("onExitCodes", {}).get("values") for rule in rules] == [None, [75], [2]]
    actions = [
        (rule["action"], rule["onJobFailureMessagePatterns"]) for rule in jobset["spec"]["failurePolicy"]["rules"]
    ]
    assert actions == [
        ("RestartJobSetAndIgnoreMaxRestarts", ["matching FailJob rule at index [01]$"]),
        ("FailJobSet", ["matching FailJob rule at index 2$"]),
    ]
    assert cloud.calls() == []
    applied = cloud("gke/render.sh", "--num-slices", "2", "--apply", "--", *words)
    assert applied.returncode == 0 and cloud.calls() == [["kubectl", "apply", "-f", "-"]]
    assert (cloud.fake / "stdin").read_text() == process.stdout
    for name, value in (("IMAGE", "a b"), ("WORKLOAD", "A_b"), ("GKE_TOPOLOGY", "4"), ("HOSTS_PER_SLICE", "x")):
        refused = cloud("gke/render.sh", "--", "--config=c", settings={name: value})
        assert refused.returncode == 2 and name in refused.stderr and not refused.stdout
    assert cloud("gke/render.sh", "--", "--config=a\nb").returncode == 2


# ------------------------------------------------------------------ GPUs


def test_single(cloud):
    project = cloud.tmp / "a project"
    shutil.copytree(ROOT / "launch", project / "launch")
    python = project / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(HOST_PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    (cloud.tmp / "behave").write_text("75")
    script = str(project / "launch/gpu/single.sh")
    process = cloud(script, "--", *NASTY)
    assert process.returncode == 75, process.stderr
    assert arrived(cloud.tmp) == [[None, "-m", "reft_jax.main", *NASTY]]
    assert [call[0] for call in cloud.calls()] == ["nvidia-smi"]
    (cloud.fake / "code.nvidia-smi").write_text("9")
    process = cloud(script, "--", *NASTY)
    assert process.returncode == 1 and "no GPU" in process.stderr and len(arrived(cloud.tmp)) == 1


@pytest.mark.parametrize(
    "code, restarts, requeued", [(0, 0, False), (75, 3, True), (75, 100, False), (1, 0, False), (2, 0, False)]
)
def test_slurm(cloud, code, restarts, requeued):
    (cloud.fake / "code.srun").write_text(str(code))
    copy = cloud.tmp / "slurm_script"  # as Slurm does
    shutil.copy(ROOT / "launch/gpu/slurm.sbatch", copy)
    env = dict(SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="42", SLURM_NTASKS="16", SLURM_RESTART_COUNT=str(restarts))
    env["SLURM_CPUS_PER_TASK"] = "8"
    process = cloud(str(copy), "--", *NASTY, **env)
    assert process.returncode == (1 if restarts == 100 else code), process.stderr
    (tool, *argv), *others = [call for call in cloud.calls() if call[0] != "squeue"]
    assert tool == "srun" and argv[-len(NASTY) - 3 :] == ["-m", "reft_jax.main", "--processes=16", *NASTY]
    assert argv[:2] == ["--label", "--cpus-per-task=8"]  # srun does not take it from the job
    assert others == ([["scontrol", "requeue", "42"]] if requeued else [])
    (cloud.fake / "job").write_text("COMPLETING")  # cancelled: who does that means it
    assert cloud(str(copy), "--", *NASTY, **env).returncode == code
    assert "scontrol" not in [call[0] for call in cloud.calls()]


# ------------------------------------------------------------------ images, the table


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_images_have_the_code_alone_and_no_root(kind):
    lines = (ROOT / f"launch/docker/Dockerfile.{kind}").read_text().splitlines()
    copied = {word.split("/")[0] for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    allowed = {
        line[1:].split("/")[0] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert copied == allowed == {"setup.py", "pyproject.toml", "launch", "reft_jax", "configs"}
    text = "\n".join(lines)
    assert text.count("-c launch/constraints.txt") == 2 and f"'.[{kind}]'" in text
    assert "USER 1000" in lines and lines.index("USER 1000") < lines.index(
        'ENTRYPOINT ["python", "-m", "reft_jax.main"]'
    )


def test_table_of_what_fits(tmp_path):
    def line(function, total, topology="v5e:4x4", **more):
        given = (
            dict(total_bytes=total * 2**30, fits=total <= 16) if total else dict(fits=False, error="RESOURCE_EXHAUSTED")
        )
        return json.dumps(
            dict(function=function, topology=topology, num_devices=16, hbm_bytes=16 * 2**30) | given | more
        )

    one = tmp_path / "codellama_7b.jsonl"
    one.write_text(
        "\n".join([line("a", 3), "a warning", line("b", 12.5), line("a", 20, "v4:2x2x4"), line("c", 0, "v6e:4x4")])
    )
    two = tmp_path / "tiny.jsonl"
    two.write_text(line("a", 0.25, "cpu:8", num_devices=8, hbm_bytes=0))
    done = subprocess.run(
        [sys.executable, ROOT / "launch/fits.py", one, two], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0 and done.stdout.splitlines()[2:] == [
        "| codellama_7b | v5e:4x4 | 16 | b | 12.50 | 16.00 | yes |",
        "| codellama_7b | v4:2x2x4 | 16 | a | 20.00 | 16.00 | no |",
        "| codellama_7b | v6e:4x4 | 16 | c | over 16.00 | 16.00 | no |",
        "| tiny | cpu:8 | 8 | a | 0.25 | not known | yes |",
    ]
    two.write_text("nothing")
    done = subprocess.run(
        [sys.executable, ROOT / "launch/fits.py", one, two], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2 and done.stdout == "" and "tiny.jsonl" in done.stderr
