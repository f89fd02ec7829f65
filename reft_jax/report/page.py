"""report.html: the template of assets/report filled with tables, data and scripts, in one file that needs nothing else.

What a model wrote, or a data set, reaches the page in two ways only: escaped in a table, or as JSON in a script element
of a type that is not run, from which the page's script makes text nodes. The page's policy lets nothing in from outside
and runs no script but its own, which it knows by their hashes.
"""

import base64
import hashlib
import json
import pathlib
import re

from reft_jax.report import tables
from reft_jax.report.read import Workdir

ASSETS = pathlib.Path(__file__).resolve().parents[1] / "assets" / "report"
SCRIPTS = ("uplot/uPlot.iife.min.js", "common.js", "charts.js", "inspector.js")
STYLES = ("uplot/uPlot.min.css", "report.css")
SLOT = re.compile(r"\{\{(\w+)\}\}")


def embedded(value) -> str:
    """JSON for a script element: ASCII, and without a character that could end the element or begin a comment."""
    encoded = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render(groups: list[tuple[str, list[Workdir]]], data: dict, notes: list[str]) -> str:
    """The whole page. `data`: {"charts", "samples", "predictions", "watch"} as the scripts read them."""
    runs = [run for _, members in groups for run in members]
    scripts = [(ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS]
    styles = [(ASSETS / name).read_text(encoding="utf-8") for name in STYLES]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(hash_source, scripts))}; style-src {' '.join(map(hash_source, styles))}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    names = ", ".join(run.name for run in runs)
    slots = {
        "policy": policy,
        "title": tables.escape(names),
        "styles": "".join(f"<style>{style}</style>" for style in styles),
        "facts": tables.facts(runs),
        "notes": tables.notes(runs, notes),
        "headline": tables.headline(groups),
        "slices": folded("Slices of the test questions", tables.slices(runs)),
        "stages": tables.stages(runs),
        "metrics": "".join(tables.last_metrics(run) for run in runs),
        "difference": tables.config_difference(runs) if len(runs) > 1 else "",
        "config": folded("Every setting", "".join(tables.config(run) for run in runs)),
        "data": embedded(data),
        "scripts": "".join(f"<script>{script}</script>" for script in scripts),
    }
    template = (ASSETS / "report.html").read_text(encoding="utf-8")
    return SLOT.sub(lambda found: slots[found[1]], template)  # in one pass: what a slot brings is never a slot


def folded(title: str, inside: str) -> str:
    return f"<details><summary>{tables.escape(title)}</summary>{inside}</details>" if inside else ""
