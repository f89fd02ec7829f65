"""What the documents promise: the README's Python runs, its links lead somewhere, and the files that it names are there."""

import pathlib
import re

import pytest

from tests import runs

ROOT = pathlib.Path(runs.ROOT)
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_in_it_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks, names = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL), {"__name__": "readme"}
    assert len(blocks) >= 4
    for block in blocks:
        line = TEXT[: TEXT.index(block)].count("\n")
        exec(compile("\n" * line + block, "README.md", "exec"), names)
    assert names["metrics"]["ppo/ratio_error"] == 0 and names["logits"].shape[:2] == (1, 3)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "launch/README.md"])
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_the_tree_names_every_module_and_nothing_else():
    [tree] = re.findall(r"## Where everything is\n\n```\n(.*?)```", TEXT, re.DOTALL)
    package = tree[tree.index("reft_jax/\n") : tree.index("benchmarks/")]
    for path in (ROOT / "reft_jax").glob("*.py"):
        assert path.name in package or path.name == "__init__.py", path.name
    for path in (ROOT / "reft_jax").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in package, path.name
    for name in re.findall(r"\b\w+\.py\b", package):
        assert list((ROOT / "reft_jax").rglob(name)), name
