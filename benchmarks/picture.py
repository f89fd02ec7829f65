"""The README's picture, from a finished run of configs/demo.py: what SFT and ReFT learn from one question, and what becomes of the accuracy.

    bash launch/demo.sh runs/demo
    python benchmarks/picture.py runs/demo benchmarks/results/reft.svg

After figures 1 and 2 of the ReFT paper (arXiv 2401.08967). The question is the training question with the most logged
responses among short ones whose first response is wrong and whose right ones are not all the same program.
"""

import collections
import html
import json
import math
import pathlib
import sys
import textwrap

from reft_jax import recipe, tasks
from reft_jax.config import renamed

WIDTH, HEIGHT, LINE = 1024, 396, 15
BLUE, ORANGE, GREEN, RED, INK, FAINT = "#0072B2", "#B87700", "#007A5A", "#B84A00", "#222222", "#6A6A6A"
SANS, MONO = "font-family='system-ui,sans-serif'", "font-family='ui-monospace,Menlo,Consolas,monospace'"


def read_lines(path: pathlib.Path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def choose(samples: list[dict]) -> list[dict]:
    """The logged responses to one question: the first wrong one, then two right ones that differ."""
    by_item = collections.defaultdict(list)
    for sample in samples:
        by_item[sample["item_id"]].append(sample)
    for rows in sorted(by_item.values(), key=len, reverse=True):
        right = list({row["response"]: row for row in rows[::-1] if row["status"] == "correct"}.values())
        if rows[0]["status"] == "wrong" and len(right) > 1 and len(rows[0]["question"]) < 160:
            return [rows[0], *sorted(right, key=lambda row: row["step"])[:2]]
    raise SystemExit("error: no question of this run has a wrong response first and two different right ones later")


def text(x, y, words, *, size=12, color=INK, font=SANS, weight=400, anchor="start") -> str:
    return (
        f"<text x='{x}' y='{y}' font-size='{size}' fill='{color}' font-weight='{weight}' text-anchor='{anchor}' "
        f"xml:space='preserve' {font}>{html.escape(words)}</text>"
    )


def box(x, y, width, height, stroke) -> str:
    return f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='6' fill='#FAFAFA' stroke='{stroke}'/>"


def program(x, y, width, lines, stroke) -> tuple[str, int]:
    """A box of code, and where it ends."""
    height = LINE * len(lines) + 14
    rows = [text(x + 10, y + 20 + LINE * i, line, size=11.5, font=MONO) for i, line in enumerate(lines)]
    return box(x, y, width, height, stroke) + "".join(rows), y + height


def chart(x, y, width, height, curves, below) -> str:
    """curves: (name, colour, epochs, accuracies, where its name stands); `below`: what the axis is."""
    most = max(max(epochs) for _, _, epochs, _, _ in curves)
    every = [accuracy for _, _, _, accuracies, _ in curves for accuracy in accuracies]
    first, last = math.floor(20 * min(every)), math.ceil(20 * max(every))  # in steps of 5 %
    low, high = first / 20, max(last, first + 1) / 20

    def place(epoch, accuracy):
        return f"{x + width * epoch / most:.1f},{y + height * (high - accuracy) / (high - low):.1f}"

    out = []
    for accuracy in (step / 20 for step in range(first, round(20 * high) + 1)):
        level = y + height * (high - accuracy) / (high - low)
        out.append(f"<line x1='{x}' y1='{level:.1f}' x2='{x + width}' y2='{level:.1f}' stroke='#E4E4E4'/>")
        out.append(text(x - 8, round(level + 4, 1), f"{accuracy:.0%}", size=11, color=FAINT, anchor="end"))
    for epoch in range(0, int(most) + 1, 4):
        out.append(
            text(round(x + width * epoch / most, 1), y + height + 18, str(epoch), size=11, color=FAINT, anchor="middle")
        )
    out.append(text(x + width / 2, y + height + 36, below, color=FAINT, anchor="middle"))
    for name, color, epochs, accuracies, (dx, dy) in curves:
        points = [place(*pair) for pair in zip(epochs, accuracies, strict=True)]
        out.append(f"<polyline points='{' '.join(points)}' fill='none' stroke='{color}' stroke-width='2.5'/>")
        last_x, last_y = map(float, points[-1].split(","))
        out.append(text(round(last_x + dx, 1), round(last_y + dy, 1), name, color=color, weight=600, anchor="end"))
    return "".join(out)


def curve(workdir: pathlib.Path, stage: str) -> tuple[list[float], list[float]]:
    rows = [row for row in read_lines(workdir / stage / "metrics.jsonl") if "eval/dev_accuracy" in row]
    return [row["epoch"] for row in rows], [row["eval/dev_accuracy"] for row in rows]


def draw(workdir: pathlib.Path) -> str:
    config = recipe.build(renamed.modern(json.loads((workdir / "config.json").read_text())["config"]))
    samples = choose(read_lines(workdir / "reft" / "samples.jsonl"))
    splits = tasks.load(config.data)
    [gold] = [record for record in splits.train if record.item_id == samples[0]["item_id"]]

    out = [text(24, 36, "A question, and its annotation", size=14, weight=600)]
    question = textwrap.wrap(gold.question, 40)
    out += [text(24, 60 + 17 * i, line, size=12.5) for i, line in enumerate(question)]
    lines = [line.strip() for line in gold.cot.splitlines()[1:] if line.strip()]
    code, bottom = program(24, 60 + 17 * len(question), 262, lines, ORANGE)
    out += [code, text(24, bottom + 24, "SFT imitates it, epoch after epoch:", color=ORANGE, weight=600)]
    out.append(text(24, bottom + 42, "one way of many to get there.", color=ORANGE))

    out.append(text(340, 36, "ReFT: the model's own, checked", size=14, weight=600))
    top = 52
    for sample in samples:
        right = sample["status"] == "correct"
        color = GREEN if right else RED
        lines = [line.strip() for line in sample["response"].splitlines() if line.strip()]
        code, bottom = program(340, top, 268, lines, color)
        verdict = f"step {sample['step']}: answer {sample['extracted']}, {'right' if right else 'wrong'}; reward {sample['score']:g}"
        out += [code, text(340, bottom + 17, verdict, color=color, weight=600)]
        top = bottom + 30
    out.append(text(690, 36, f"Greedy accuracy on {len(splits.dev):,} dev questions", size=14, weight=600))
    (warm, warm_y), (sft, sft_y), (reft, reft_y) = (curve(workdir, stage) for stage in ("warmup", "sft", "reft"))
    reft = [warm[-1] + epoch for epoch in reft]
    curves = [
        ("warm-up", FAINT, warm, warm_y, (58, 56)),
        ("SFT", ORANGE, [warm[-1], *sft], [warm_y[-1], *sft_y], (0, 24)),
        ("ReFT", BLUE, reft, reft_y, (0, -10)),
    ]
    out.append(chart(690, 60, 310, 270, curves, f"epochs over the same {len(splits.train):,} questions"))
    about = (
        f"Left, one training question and what was drawn for it; right, the whole run: {gold.item_id}, {workdir.name}"
    )
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' role='img' aria-labelledby='t'>"
    ground = (
        f"<title id='t'>{html.escape(about)}</title><rect width='{WIDTH}' height='{HEIGHT}' rx='10' fill='#FFFFFF'/>"
    )
    return "\n".join([head, ground, *out, "</svg>\n"])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    pathlib.Path(sys.argv[2]).write_text(draw(pathlib.Path(sys.argv[1])), encoding="utf-8")
