"""What a compiled program's text (optimised HLO) says of its communication."""

import collections
import dataclasses
import math
import re

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = dict(pred=1, s8=1, u8=1, s4=1, u4=1, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8)

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=(%?[\w.\-]+)|(?:branch|called)_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    shape: str  # as written: f32[8,128]{1,0}, or a tuple of such
    op: str
    rest: str  # operands and attributes


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation, by its name."""
    out, current = {}, None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = out[match[1]] = []
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(Instruction(*match.groups()))
    return out


def num_bytes(shape: str) -> int:
    """Bytes of an array's shape, or of all in a tuple."""
    arrays = ((BYTES.get(kind, 0), sizes) for kind, sizes in _ARRAY.findall(shape))
    return sum(size * math.prod(int(n) for n in sizes.split(",") if n) for size, sizes in arrays)


def times_run(parts: dict[str, list[Instruction]]) -> collections.Counter:
    """How often each computation runs; the body of a loop whose trips the compiler does not know counts once."""
    called = collections.defaultdict(list)
    for name, instructions in parts.items():
        for instruction in instructions:
            known = _TRIPS.search(instruction.rest)
            trips = int(known[1]) if instruction.op == "while" and known else 1
            for one, several in _CALLED.findall(instruction.rest):
                called[name] += [(other.strip().lstrip("%"), trips) for other in (one or several).split(",")]
    counts = collections.Counter()

    def run(name, times):
        counts[name] += times
        for other, trips in called[name]:
            if other in parts:
                run(other, times * trips)

    inner = {other for calls in called.values() for other, _ in calls}
    for name in parts:
        if name not in inner:
            run(name, 1)
    return counts


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{kind: {count, bytes}} of one device's communication in one call; bytes are those of the results."""
    parts = computations(text)
    times, out = times_run(parts), {}
    for name, instructions in parts.items():
        for instruction in instructions:
            kind = instruction.op.removesuffix("-start")
            if kind in COLLECTIVES:
                entry = out.setdefault(kind, dict(count=0, bytes=0))
                size = num_bytes(instruction.shape)
                if instruction.op.endswith("-start") and instruction.shape.startswith("("):
                    size = size_of_result(instruction.shape)
                entry["count"] += times[name]
                entry["bytes"] += times[name] * size
    return out


def size_of_result(shape: str) -> int:
    """Bytes of the largest array of an asynchronous operation's tuple (operand, result, ...)."""
    return max((num_bytes(f"{kind}[{sizes}]") for kind, sizes in _ARRAY.findall(shape)), default=0)
