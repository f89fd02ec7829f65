"""What a stage logs: metrics.jsonl, always, and, as `config.logging` asks, the same numbers as TensorBoard's event files and as a run of W&B.

metrics.jsonl is the record: a resumed stage first drops what lies after its checkpoint from it, and the others then say what it
says. The event file is written anew, after a mark that has a running TensorBoard forget what it has read; W&B, whose history
only grows, is sent what it has not had yet (steps computed again after a resume give the same numbers).

    tensorboard --logdir runs/demo          wandb sync runs/demo/reft/wandb/offline-run-*
"""

import json
import math
import pathlib
import secrets
import sys

from reft_jax.config import packages
from reft_jax.config.settings import Logging
from reft_jax.errors import InputError, RunError
from reft_jax.mesh import distributed
from reft_jax.run.metrics import Lines, plain, write_json


def check(logging: Logging):
    """InputError if a package that the settings need is not installed or cannot be imported, or W&B has no key."""
    if logging.tensorboard:
        where = "config.logging.tensorboard: got True"
        remedy = "pip install -e . (or pip install tensorboardX), or --config.logging.tensorboard=False"
        _needed(where, remedy, "tensorboardX.event_file_writer", "EventsWriter")
    if logging.wandb == "off":
        return
    where = f"config.logging.wandb: got {logging.wandb!r}"
    wandb = _needed(
        where, "pip install -e '.[wandb]' (or pip install wandb), or --config.logging.wandb=off", "wandb", "init"
    )
    if logging.wandb == "online" and not wandb.login(prompt=False):
        raise InputError(
            f"{where}, and there is no key for W&B: run `wandb login`, set WANDB_API_KEY, or choose 'offline'"
        )


def _needed(where: str, remedy: str, name: str, attribute: str):
    try:
        return packages.load(name, attribute)
    except Exception as error:  # a package that does not fit another that is installed raises what it likes
        said = str(error) if isinstance(error, ImportError) else f"{name} cannot be imported ({error!r})"
        raise InputError(f"{where}, and {said}: {remedy}") from error


class Metrics:
    """The metrics of a training stage, a record a logged step; opening them at a step drops what was written after it."""

    def __init__(self, run, name: str, after_step: int):
        path, self._others = run.folder(name) / "metrics.jsonl", []
        self._lines = Lines(path, after_step=after_step)
        logging = run.config.logging
        if not distributed.is_primary() or not logging.tensorboard and logging.wandb == "off":
            return
        written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if logging.tensorboard:
            self._others.append(EventFile(path.parent, written))
        if logging.wandb != "off":
            self._others.append(Wandb(run, name, written))

    def write(self, record: dict):
        """A record of `step`, `time` and numbers by name."""
        record = plain(record)
        self._lines.write(record)
        for other in self._others:
            other.write(record)

    def close(self):
        for closable in (self._lines, *self._others):
            closable.close()


def numbers(record: dict) -> dict[str, float]:
    """What of a record of metrics.jsonl can be drawn: no null, which was not finite."""
    return {
        key: value
        for key, value in record.items()
        if key not in ("step", "time") and isinstance(value, (int, float)) and math.isfinite(value)
    }


class EventFile:
    """A stage's events.out.tfevents.*, one event a record; read from the disk as soon as it is written."""

    def __init__(self, folder: pathlib.Path, written: list[dict]):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._file = EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.write_event(self._event(session_log=start, step=0))
        for record in written:
            self._add(record)
        self._file.flush()

    def _add(self, record: dict):
        values = [self._summary.Value(tag=key, simple_value=value) for key, value in numbers(record).items()]
        event = self._event(wall_time=record["time"], step=record["step"], summary=self._summary(value=values))
        self._file.write_event(event)

    def write(self, record: dict):
        self._add(record)
        self._file.flush()

    def close(self):
        self._file.close()


class Wandb:
    """A stage as a run of W&B, all stages of a workdir as a group. <stage>/wandb/sent.json: its id, and the last step that it was sent."""

    def __init__(self, run, name: str, written: list[dict]):
        import wandb

        logging, folder = run.config.logging, run.folder(name)
        self._path = folder / "wandb" / "sent.json"
        self._path.parent.mkdir(exist_ok=True)
        self._sent = {"id": secrets.token_hex(4), "step": -1}
        if self._path.exists():
            self._sent = json.loads(self._path.read_text())
        try:
            self._run = wandb.init(
                project=logging.wandb_project,
                dir=str(folder),
                mode=logging.wandb,
                id=self._sent["id"],
                resume="allow" if logging.wandb == "online" else None,
                reinit="finish_previous",
                name=f"{run.workdir.name}/{name}",
                group=run.workdir.name,
                job_type=run.config.kind(name),
                config=json.loads((run.workdir / "config.json").read_text()),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise RunError(
                f"{name}: W&B cannot be reached ({error}); run the same command again, or with --config.logging.wandb=offline"
            ) from error
        where = self._run.url if logging.wandb == "online" else f"wandb sync {self._run.dir.removesuffix('/files')}"
        print(f"{name}: W&B: {where}", flush=True)
        for record in written:
            self.write(record)

    def write(self, record: dict):
        if record["step"] > self._sent["step"]:
            self._run.log(numbers(record), step=record["step"])
            self._sent["step"] = record["step"]
            write_json(self._path, self._sent)

    def close(self):
        self._run.finish()


def finish():
    """Ends W&B's run of a stage that an exception has left."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
