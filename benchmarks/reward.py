"""How fast programs are graded, beside the ReFT authors' way and plain `exec`; one JSON object per line.

    taskset -c 0,1 python benchmarks/reward.py                                    # about three minutes on two cores
    taskset -c 0,1 python benchmarks/reward.py --only=grade --programs=20000

`grade`: end to end through `grade`, a process per program. `authors`: as in the authors' train_rl_reft.py, a new process
pool for every batch, whose workers import sympy, and a timeout per program by SIGALRM. `exec`: in this process, with
nothing between the program and the machine. `latency`: batches of 512 with 2 % endless programs, at a timeout of 2 s.
`grade_KIND`: programs that use a library; `fork_KIND`: what the machine allows them with a process each, by `os.fork()` of a
process that holds the libraries, one after the other on one core, with nothing else.
Programs are arithmetic like SVAMP's, all of them different, so that none is run once for several.
"""

import argparse
import concurrent.futures
import functools
import gc
import json
import os
import pathlib
import signal
import time

from reft_jax.rewards import program
from reft_jax.rewards.score import grade

BATCH = 512
ENDLESS = "def solution():\n    while True:\n        pass"


KINDS = {  # how a program takes 5 from its total
    "plain": ("result = total - 5",),
    "numpy": ("import numpy", "result = numpy.array([total, -5]).sum()"),
    "scipy": ("from scipy.optimize import fsolve", "result = round(float(fsolve(lambda x: x - total + 5, 1.0)[0]))"),
    "sympy": ("result = sympy.Integer(total) - 5",),
    "solve": ("x = sympy.Symbol('x')", "result = sympy.solve(sympy.Eq(x + 5, total), x)[0]"),
    "lambdify": ("x = sympy.Symbol('x')", "result = sympy.lambdify(x, x - 5)(total)"),
}


def honest(number: int, kind: str = "plain") -> tuple[str, str]:
    """(program, its answer)."""
    price, count = 3 + number % 97, 2 + number // 97
    lines = [f"price = {price}", f"count = {count}", "total = price * count", *KINDS[kind], "return result"]
    return "def solution():\n" + "\n".join(f"    {line}" for line in lines), str(price * count - 5)


def right(texts, golds, **limits) -> int:
    return sum(g.correct for g in grade("svamp", "program", texts, golds, **limits))


def measure_grade(num: int, workers: int, kind: str) -> dict:
    pairs = [honest(i, kind) for i in range(num)]
    began = time.monotonic()
    right(*zip(*pairs[:1], strict=True), workers=workers)
    started = time.monotonic() - began
    right(*zip(*pairs[:BATCH], strict=True), workers=workers)  # all servers are up
    began, correct = time.monotonic(), 0
    for start in range(0, num, BATCH):
        correct += right(*zip(*pairs[start : start + BATCH], strict=True), workers=workers)
    seconds = time.monotonic() - began
    assert correct == num
    return {"programs_per_s": num / seconds, "start_s": started, "pool_mb": pool_mb(), "servers": len(program._SERVERS)}


def measure_latency(batches: int, workers: int) -> dict:
    seconds = []
    for batch in range(batches):
        pairs = [honest(batch * BATCH + i) if i % 50 else (f"{ENDLESS}  # {batch} {i}", "1") for i in range(BATCH)]
        began = time.monotonic()
        right(*zip(*pairs, strict=True), workers=workers, timeout_s=2.0)
        seconds.append(time.monotonic() - began)
    seconds.sort()
    return {"timeout_s": 2.0, "median_s": seconds[len(seconds) // 2], "p99_s": seconds[int(0.99 * len(seconds))]}


def pool_mb() -> float:
    """What the servers and their launchers hold: proportional set size, which counts shared pages once."""
    total, launchers = 0, [server.process.pid for server in program._SERVERS]
    servers = [pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text() for pid in launchers]
    for pid in launchers + [int(pid) for pid in servers]:
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def run_like_the_authors(source: str) -> str:
    import sympy

    def ring(number, frame):
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 10.0)
    try:
        names = {"sympy": sympy}
        exec(source, names)
        return str(names["solution"]())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def measure_authors(num: int, workers: int) -> dict:
    pairs, correct, began = [honest(i) for i in range(num)], 0, time.monotonic()
    for start in range(0, num, BATCH):
        texts, golds = zip(*pairs[start : start + BATCH], strict=True)
        with concurrent.futures.ProcessPoolExecutor(workers) as pool:
            correct += sum(a == b for a, b in zip(pool.map(run_like_the_authors, texts), golds, strict=True))
    assert correct == num
    return {"programs_per_s": num / (time.monotonic() - began)}


def measure_exec(num: int) -> dict:
    pairs, began = [honest(i) for i in range(num)], time.monotonic()
    for text, gold in pairs:
        names = {}
        exec(text, names)
        assert str(names["solution"]()) == gold
    return {"programs_per_s": num / (time.monotonic() - began)}


def measure_fork(num: int, kind: str) -> dict:
    import scipy.optimize  # noqa: F401  (numpy too)
    import sympy

    def run(number):
        text, gold = honest(number, kind)
        names = {"sympy": sympy}
        exec(text, names)
        return str(names["solution"]()) == gold

    assert all(run(i) for i in range(20))  # the libraries' own caches are filled
    gc.collect()
    gc.freeze()
    began, correct = time.monotonic(), 0
    for i in range(num):
        if (child := os.fork()) == 0:
            os._exit(not run(20 + i))
        correct += os.waitpid(child, 0)[1] == 0
    seconds = time.monotonic() - began
    gc.unfreeze()
    assert correct == num
    return {"programs_per_s_and_core": num / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one of them, as above")
    parser.add_argument("--programs", type=int, default=10 * BATCH)
    parser.add_argument("--batches", type=int, default=20, help="of the latency")
    parser.add_argument("--workers", type=int, default=program.num_processors())
    args = parser.parse_args()
    measures = {
        "grade": lambda: measure_grade(args.programs, args.workers, "plain"),
        **{
            f"grade_{kind}": functools.partial(measure_grade, args.programs // 4, args.workers, kind)
            for kind in KINDS
            if kind != "plain"
        },
        "latency": lambda: measure_latency(args.batches, args.workers),
        "authors": lambda: measure_authors(args.programs // 4, args.workers),
        "exec": lambda: measure_exec(args.programs),
        **{
            f"fork_{kind}": functools.partial(measure_fork, args.programs // 16, kind) for kind in ("solve", "lambdify")
        },
    }
    if args.only not in (None, *measures):
        parser.error(f"--only: got {args.only!r}; it is one of {', '.join(measures)}")
    for name, measure in measures.items():
        if args.only in (None, name):
            program.close()
            load = os.getloadavg()[0]
            row = {"what": name, "workers": args.workers, **measure(), "load_before": load}
            row["layers_missing"] = [layer for layer, reason in program.layers().items() if reason]
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
