"""Coverage-guided fuzzing of answer extraction and of the result channel, with atheris.

    python tests/fuzz_answer.py -max_total_time=3600        # libFuzzer's arguments; it stops at the first crash

Whatever the text: extraction returns a canonical answer or None, quickly; a canonical answer is its own canonical form and
agrees with itself; the server takes nothing for a result that does not bear the token, and no illegal one that does.
A crash becomes a named test in tests/test_answer.py.
"""

import importlib.util
import pathlib
import sys
import time

import atheris

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
with atheris.instrument_imports():
    from reft_jax.rewards import answer

    spec = importlib.util.spec_from_file_location("program_server", ROOT / "reft_jax/rewards/program_server.py")
    program_server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program_server)

TOKEN = bytes(range(32))


def check_answer(text: str) -> None:
    start = time.monotonic()
    for kind in answer.KINDS:
        for matcher in answer.MATCHERS:
            key = answer.extract(answer.TRIGGER + text, kind=kind, matcher=matcher)
            if key is None:
                continue
            assert key and key == key.strip(), (text, key)
            assert answer.canonical(key, kind=kind, matcher=matcher) == key, (text, kind, matcher, key)
            assert answer.equal(key, key, kind=kind), (text, key)
            if kind == "number":
                assert answer.canonical(key, kind=kind, matcher="reft_paper") == key, (text, key)
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
