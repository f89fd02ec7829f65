"""The program in a response: fences, line ends, what the prompt has begun."""

import pytest

from reft_jax.rewards.markdown import program_in
from reft_jax.rewards.program import ProgramResult, run_programs
from reft_jax.rewards.score import Ahead, grade

RIGHT = "def solution():\n    return 5\n"
WRONG = "def solution():\n    return 1\n"
RESPONSES = {
    "plain": RIGHT,
    "fenced": f"```python\n{RIGHT}```",
    "fenced, no language": f"```\n{RIGHT}```\n",
    "text around": f"Here it is:\n\n```python\n{RIGHT}```\nIt calls `solution`.",
    "never closed": f"```py\n{RIGHT}",
    "opened by the prompt": f"{RIGHT}```\nThe answer is five.",
    "opened by the prompt, with its output": f"{RIGHT}```\nOutput:\n```\n5\n```\n",
    "text behind the fence": f"```python\n{RIGHT}```<|im_end|>",
    "tildes": f"~~~ python\n{RIGHT}~~~",
    "fence in a fence": f"````markdown\n```python\n{RIGHT}```\n````",
    "in a list": "1. Code:\n   ```python\n   def solution():\n       return 5\n   ```\n",
    "the last counts": f"```python\n{WRONG}```\nBetter:\n```Python3\n{RIGHT}```\n",
    "the last that defines it counts": f"```python\n{RIGHT}```\n```python\nprint(solution())\n```\n```\n5\n```",
    "after what the prompt has begun": f"{WRONG}```\nBetter:\n```python\n{RIGHT}```",
    "the prompt's signature, then a block": f"def solution():\n```python\nimport math\n\n{RIGHT}```",
    "the prompt's signature and docstring, then a block": f'def solution():\n    """How many?"""\n```python\n{RIGHT}```',
    "the prompt's signature, then a whole program": f"def solution():\nimport math\n\n{RIGHT}",
    "a name": "```python\nsolution = lambda: 5\n```",
    "imports, names and a type": "```python\nfrom math import sqrt\nN = 5\n\ndef solution() -> int:\n    return N\n```",
    "a fence in a docstring": f'def solution():\n    """\n    ```python\n    {WRONG[:-1]}\n    ```\n    """\n    return 5\n',
    "lines end as on Windows": f"```python\n{RIGHT}```\n".replace("\n", "\r\n"),
    "lines end as on old Macs": RIGHT.replace("\n", "\r"),
    "byte order mark": f"\ufeff{RIGHT}",
    "tabs": "def solution():\n\tif True:\n\t\treturn 5\n",
    "tabs and spaces": "def solution():\n    x = 5\n\treturn x\n",
    "tabs and more spaces": "def solution():\n        x = 5\n\treturn x\n",
}  # fmt: skip


@pytest.mark.parametrize("name", RESPONSES)
def test_the_program_is_found(name):
    names = {}
    exec(program_in(RESPONSES[name]), names)
    assert names["solution"]() == 5
    assert program_in(program_in(RESPONSES[name])) == program_in(RESPONSES[name])


def test_what_holds_no_program_stays():
    for text in ("", "x = 1", "```\n5\n```", "Use `a`.\n```\nb\n```\nc", "def solution():\n"):
        assert program_in(text) == text


def test_grades_of_fenced_programs_by_every_way_to_run_them():
    fenced = [
        RESPONSES["text around"],
        RESPONSES["lines end as on Windows"],
        f"```python\n{WRONG}```",
        "```python\n5\n```",
    ]
    limits = dict(timeout_s=5.0, memory_mb=128, workers=1)
    assert run_programs(fenced, **limits)[:3] == [ProgramResult("ok", value) for value in "551"]
    ahead = Ahead(**limits)
    for text in fenced:
        ahead.add(text)
    for how in ({}, {"ahead": ahead}):
        grades = grade("svamp", "program", fenced, ["5"] * 4, **limits, **how)
        assert [g.status for g in grades] == ["correct", "correct", "wrong", "error"]
    # The authors run what stands there.
    assert [g.status for g in grade("svamp", "program", fenced, ["5"] * 4, matcher="reft_paper", **limits)] == [
        "error"
    ] * 4
