"""How far a phase of a run is: one line that a terminal redraws in place, or plain lines, ever rarer, where there is no terminal.

reft step 34/79 |████▎     | 2:10 left  reward 0.812  accuracy 0.797  KL 0.930  length 31  tokens/s 1,240
"""

import collections
import os
import sys
import time

import tqdm

from reft_jax.mesh import distributed

REDRAW_S = 0.2  # a terminal's line is drawn anew at most so often
FIRST_S, RARELY_S, SHARE = 15.0, 300.0, 0.05  # between plain lines: SHARE of the time so far, from FIRST_S to RARELY_S
WINDOW = 60  # seconds or updates, whichever is longer, that the time left is told from: a first step that compiles is soon forgotten
PHASE_S = 2.0  # a phase is shown once it has gone on for so long
BAR = 10  # columns
_SHOWN = []  # the terminal's line, if there is one


class Progress:
    """`total` units of work of which `start` are done. Only process 0 shows anything."""

    def __init__(self, name: str, total: int, start: int = 0, unit: str = "step", waiting: str = ""):
        """`waiting`: what is said at once, until the first update."""
        clear()
        self._name, self._unit, self._total, self._done = name, unit, total, start
        self._phase, self._values = waiting, {}
        now = time.monotonic()
        self._phase_name, self._phase_begun = "", now
        self._begun, self._marks = now, collections.deque([(now, start)], maxlen=WINDOW)
        self._drawn = now
        self._mute, self._bar = not distributed.is_primary(), None
        if not self._mute and sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=total, initial=start, file=sys.stderr, leave=False, bar_format=self._line())
            _SHOWN.append(self)
        elif waiting:
            self._show(now, last=True)

    def update(self, done: int, **values: str):
        """`done` units are done. `values`: what is shown of them; without any, what was shown before."""
        self._phase, self._phase_name, self._done = "", "", done
        self._values = values or self._values
        now = time.monotonic()
        if now - self._marks[-1][0] >= 1.0 or len(self._marks) == 1:
            self._marks.append((now, done))
        self._show(now, last=done == self._total)

    def phase(self, name: str, done: int, total: int):
        """Within a unit of work: `done` of `total` parts of a phase of it, which is shown if it takes long."""
        now = time.monotonic()
        if name != self._phase_name:
            self._phase_name, self._phase_begun = name, now
        if now - self._phase_begun >= PHASE_S:
            self._phase = f"{name} {done:,}/{total:,}"
            self._show(now)

    def close(self):
        """Takes the line off the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            _SHOWN.remove(self)

    def _show(self, now: float, last: bool = False):
        if self._mute:
            return
        if self._bar is not None:
            if last or now - self._drawn >= REDRAW_S:
                self._drawn = now
                self._bar.n, self._bar.bar_format = self._done, self._line()
                self._bar.refresh()
        elif last or now - self._drawn >= min(max(SHARE * (now - self._begun), FIRST_S), RARELY_S):
            self._drawn = now
            print(f"{self._name}: {'  '.join([self._count(), *self._parts()])}", file=sys.stderr, flush=True)

    def _count(self) -> str:
        return f"{self._unit} {self._done:,}/{self._total:,}"

    def _parts(self) -> list[str]:
        """What is said after the count, the most important first."""
        (then, before), (now, done) = self._marks[0], self._marks[-1]
        times = [f"{clock((self._total - self._done) * (now - then) / (done - before))} left"] if done > before else []
        if self._done >= self._total:
            times = [f"in {clock(time.monotonic() - self._begun)}"]
        return [*times, *filter(None, [self._phase]), *(f"{key} {value}" for key, value in self._values.items())]

    def _line(self) -> str:
        """tqdm's format of a line that fits the terminal; what does not fit is left out whole, from the end."""
        head, tail, width = f"{self._name} {self._count()} |", "|", columns()
        for part in self._parts():
            part = f" {part}" if tail == "|" else f"  {part}"
            if len(head + tail + part) + BAR >= width:
                break
            tail += part
        return f"{escaped(head)}{{bar:{BAR}}}{escaped(tail)}"


def clear():
    """Takes away the terminal's line, if an exception has left one: a message can follow."""
    while _SHOWN:
        _SHOWN[-1].close()


def columns() -> int:
    """The terminal's width now."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def formatted(metrics: dict, fields) -> dict[str, str]:
    """What `Progress.update` shows of metrics; fields: (label, key, format) of those that may be among them."""
    return {label: format(metrics[key], how) for label, key, how in fields if key in metrics}


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def clock(seconds: float) -> str:
    """Time as 2:10 or 1:02:10."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
