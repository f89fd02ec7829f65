"""Coverage-guided fuzzing of answer extraction and of the result channel, with atheris.

    python tests/fuzz_answer.py -max_total_time=3600        # libFuzzer's arguments; it stops at the first crash

Whatever the text and the matcher: extraction returns an answer and where it stands, or None, quickly; a canonical answer is its own
canonical form and agrees with itself; what sympy is asked is a program of known words; the server takes nothing for a result that does
not bear the token, and no illegal one that does.
A crash becomes a named test in tests/test_answer.py.
"""

import importlib.util
import pathlib
import re
import sys
import time

import atheris

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
with atheris.instrument_imports():
    from reft_jax.config import choices
    from reft_jax.rewards import answer, matchers

    MATCHERS = {name: matchers.get(name) for name in choices.names("rewards/matchers")}

    spec = importlib.util.spec_from_file_location("program_server", ROOT / "reft_jax/rewards/program_server.py")
    program_server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program_server)

TOKEN = bytes(range(32))


OPENINGS = (answer.TRIGGER, "#### ", "\\boxed{", "")
PROOF = re.compile(r'(?:Integer\(\d+\)|Symbol\("[A-Za-z]+(?:_\{?\w+\}?)?"\)|[A-Za-z]+|[-+*/(), ])*', re.ASCII)


def check_answer(text: str) -> None:
    start = time.monotonic()
    for name, matcher in MATCHERS.items():
        for kind in matcher.kinds:
            for opening in OPENINGS:
                whole = opening + text + "}" * (opening == "\\boxed{")
                value, status, span = matcher.find(whole, kind)
                assert (value is None) == (span is None) == (status == "no_answer"), (whole, name, value)
                if value is not None:
                    assert value and value == value.strip(), (whole, name, value)
                    if not name.startswith("gsm8k"):
                        assert matcher.bare(whole[slice(*span)], kind) == value, (whole, name, value)
            key = matcher.bare(text, kind)
            if key is None:
                continue
            assert key and key == key.strip(), (text, name, key)
            assert matcher.bare(key, kind) == key, (text, name, kind, key)
            if matcher.gold(key, kind) == key:
                assert matcher.agree(key, key, kind), (text, name, key)
            if kind == "number" and name in ("reft", "reft_paper"):
                assert answer.canonical(key, kind=kind, matcher="reft_paper") == key, (text, key)
            if kind == "expression" and (source := matcher.proof(key, "x^2+1")) is not None:
                compile(source, "<proof>", "exec")
                pairs = source.partition(" in (")[2].partition("):\n")[0]
                assert PROOF.fullmatch(pairs), (text, source)
    assert time.monotonic() - start < 2.0, len(text)


def check_result(data: bytes) -> None:
    assert program_server.parse_result(data, TOKEN) is None or data[:16] in (TOKEN[:16], TOKEN[16:])
    result = program_server.parse_result(TOKEN[:16] + data, TOKEN)
    if result is not None:
        status, value, detail = result
        assert status in program_server.STATUSES and (status == "ok") == (value is not None), result
        assert not detail.startswith("verifier:") and "\0" not in f"{value}{detail}", result
        assert value is None or (value.isprintable() and len(value) <= 512), result


def one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        check_answer(provider.ConsumeUnicode(provider.remaining_bytes()))
    else:
        check_result(provider.ConsumeBytes(provider.remaining_bytes()))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
