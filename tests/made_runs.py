"""A workdir as a run leaves it, written in a moment, with texts that would like to be more than text; and the page made of it, parsed."""

import html.parser
import json
import pathlib

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{data}} \u2028 & 'quoted' \"text\""
STATUSES = ("correct", "wrong", "no_answer", "timeout", "error")
DATA = {"task": "svamp", "cot": "nl", "source": "files", "seed": 0}


def config(seed: int = 0, kl_coef: float = 0.02) -> dict:
    stages = {
        "warmup": {"kind": "sft", "init_from": "base", "continue_run": False, "batch_size": 32},
        "sft": {"kind": "sft", "init_from": "warmup", "continue_run": True, "batch_size": 32},
        "reft": {
            "kind": "reft",
            "init_from": "warmup",
            "batch_size": 16,
            "num_samples": 4,
            "ppo": {"kl_coef": kl_coef},
        },
        "evaluate": {"kind": "evaluate"},
    }
    return {"seed": seed, "model": {"name": "tiny"}, "data": DATA | {"seed": seed}, "stages": stages}


def jsonl(path: pathlib.Path, rows, tail: str = ""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + tail, encoding="utf-8")


def methods() -> dict:
    """A config whose stages are called by their methods: none is named sft or reft, and two kinds come twice."""
    sft = {"kind": "sft", "continue_run": False, "batch_size": 32}
    stages = {
        "base": sft | {"init_from": "random"},
        "warmup": sft | {"init_from": "base"},
        "grpo": {"kind": "reft", "init_from": "warmup", "batch_size": 16, "num_samples": 4, "advantage": "grpo"},
        "offline": {"kind": "self_train", "mode": "offline", "init_from": "base", "sample_from": "warmup"},
        "online": {"kind": "self_train", "mode": "online", "init_from": "warmup", "batch_size": 8, "num_samples": 1},
        "evaluate": {"kind": "evaluate"},
    }
    stages["offline"] |= {"batch_size": 32, "num_samples": 10}
    return config() | {"stages": stages}


def sft_rows(first: int, last: int) -> list[dict]:
    return [
        {"step": 10 * e, "epoch": float(e), "time": 1e9 + e, "sft/loss": 1 / e, "eval/dev_accuracy": 0.5 + e / 100}
        for e in range(first, last)
    ]


def reft_rows(num: int, shift: float = 0.0) -> list[dict]:
    start = {"step": 0, "epoch": 0.0, "time": 1e9 + 20, "eval/dev_accuracy": 0.54, "time/eval_s": 1.0}
    rows = [
        {
            "step": t,
            "epoch": t / 4,
            "time": 1e9 + 20 + 2 * t,
            "reward/mean": 0.6 + t / 500 + shift,
            "reward/accuracy": 0.5 + t / 500 + shift,
            "kl/mean": 0.1 * t,
            "ppo/value_loss": 1 / t,
            "status/correct": 0.75,
            "status/wrong": 0.25,
            "time/sample_s": 0.5,
            "time/reward_s": 0.25,
            "time/update_s": 1.0,
            "my/own_metric": 7.0 * t,
        }
        | ({"eval/dev_accuracy": 0.8} if t % 4 == 3 else {})
        for t in range(1, num)
    ]
    return [start, *rows]


def sample(step: int, place: int, text: str = " 1 + 2\n= 3") -> dict:
    tokens = [*([text[:3], text[3:]] if len(text) > 3 else [text]), "<eos>"]
    size = len(tokens)
    return {
        "step": step,
        "item_id": f"svamp_{(step + place) % 7}",
        "question": f'How many, "Ann" \u00e9? {HOSTILE if place == 0 else place}',
        "response": text,
        "extracted": None if place == 2 else "3",
        "status": STATUSES[place % len(STATUSES)],
        "score": 1.0,
        "kl": 0.5,
        "tokens": tokens,
        "logp": [-0.1 * (i + 1) for i in range(size)],
        "ref_logp": [-0.3] * size,
        "value": [0.25 * i for i in range(size)],
        "adv": [i - 1.0 for i in range(size)],
    }


def samples(steps: int, per_step: int = 4) -> list[dict]:
    return [
        sample(s, p, HOSTILE if p == 1 else f" {s} + {p}\n= 3") for s in range(1, steps + 1) for p in range(per_step)
    ]


def predictions(label: str, num: int = 12) -> list[dict]:
    rows = []
    for split in ("dev", "test"):
        for i in range(num):
            status = "correct" if (i + len(label)) % 3 else "wrong"
            line = {"item_id": f"{split}_{i}", "k": 0, "prefix": "def f():\n", "response": HOSTILE, "extracted": "3"}
            rows.append(line | {"status": status, "gold": "3", "split": split, "mode": "greedy"})
    for i in range(num):
        for k in range(4):
            line = {"item_id": f"test_{i}", "k": k, "prefix": "", "response": f"s{k}", "extracted": "3"}
            status = "correct" if k < i % 5 else "wrong"
            rows.append(line | {"status": status, "gold": "3", "split": "test", "mode": "sampled"})
    return rows


RESULTS = {
    "sft": {
        "accuracy": 0.75,
        "ci95": [0.7, 0.79],
        "num_questions": 400,
        "dev": {"accuracy": 0.7, "ci95": [0.65, 0.75]},
        "maj@4": 0.8,
        "selected_on": "dev",
        "step": 150,
        "epoch": 15.0,
        "matcher": "reft",
        "by": {"num_ops": {"3": {"accuracy": 0.9, "ci95": [0.8, 0.95], "num_questions": 50}}},
    },
    "reft": {
        "accuracy": 0.8512,
        "ci95": [0.8101, 0.8803],
        "num_questions": 400,
        "maj@4": 0.9,
        "maj@4_ci95": [0.85, 0.93],
        "selected_on": "test",
        "step": 40,
        "epoch": 10.0,
        "matcher": HOSTILE,
        "by": {},
    },
}


def write(
    workdir: pathlib.Path, *, seed: int = 0, kl_coef: float = 0.02, steps: int = 40, shift: float = 0.0
) -> pathlib.Path:
    """A finished run of four stages; returns its workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    about = {"config": config(seed, kl_coef), "git_commit": "abcdef0123", "devices": ["cpu:0"], "device_kind": "cpu"}
    (workdir / "config.json").write_text(json.dumps(about | {"notes": [HOSTILE]}))
    jsonl(workdir / "warmup" / "metrics.jsonl", sft_rows(1, 5))
    jsonl(workdir / "sft" / "metrics.jsonl", sft_rows(5, 16))
    jsonl(workdir / "reft" / "metrics.jsonl", reft_rows(steps, shift))
    jsonl(workdir / "reft" / "samples.jsonl", samples(steps))
    for label in ("sft", "reft"):
        jsonl(workdir / label / "predictions.jsonl", predictions(label))
    (workdir / "results.json").write_text(json.dumps({"stages": RESULTS}))
    for stage in ("warmup", "sft", "reft", "evaluate"):
        (workdir / stage).mkdir(exist_ok=True)
        (workdir / stage / "DONE").write_text("{}")
    return workdir


def write_methods(workdir: pathlib.Path) -> pathlib.Path:
    """A finished run of `methods`, of which base logs test accuracy, not dev; returns its workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"config": methods()}))
    base = [{key.replace("dev", "test"): value for key, value in row.items()} for row in sft_rows(1, 4)]
    online = [{key: value for key, value in row.items() if key != "ppo/value_loss"} for row in reft_rows(24, 0.05)]
    rows = {"base": base, "warmup": sft_rows(1, 5), "grpo": reft_rows(40), "offline": sft_rows(2, 9), "online": online}
    for stage, lines in rows.items():
        jsonl(workdir / stage / "metrics.jsonl", lines)
    for stage in ("grpo", "online"):
        jsonl(workdir / stage / "samples.jsonl", samples(5))
    labels = ("base", "grpo", "offline", "online", "pretrained")
    (workdir / "results.json").write_text(json.dumps({"stages": dict.fromkeys(labels, RESULTS["reft"])}))
    for label in labels:
        jsonl(workdir / label / "predictions.jsonl", predictions(label, 3))
    return workdir


class Page(html.parser.HTMLParser):
    """What a browser's parser makes of the file: elements, the text of scripts and styles, all other text."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.path, self.tags, self.raw, self.words, self._in = path, [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._in.append(tag)
            self.raw.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        if self._in and tag == self._in[-1]:
            self._in.pop()

    def handle_data(self, text):
        if self._in:
            self.raw[-1][2] += text
        else:
            self.words.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict:
        (found,) = (text for tag, attrs, text in self.raw if attrs.get("type") == "application/json")
        return json.loads(found)

    @property
    def policy(self) -> str:
        return next(
            attrs["content"] for tag, attrs in self.tags if attrs.get("http-equiv") == "Content-Security-Policy"
        )
