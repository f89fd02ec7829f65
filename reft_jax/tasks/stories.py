"""Generated word problems in everyday wording: the data set `stories`, on which a small base model for real text is pretrained.

A scene (reft_jax/assets/stories.txt) is a few quantities and the equations between them, and says how each quantity is told, asked
and named. A problem asks for one of them and tells enough of the others; so start, change and result, part and whole, price and
count are unknown in turn, and one scene gives many problems. What else is told is not needed.

In the file `@name a, b` is a list of words (of sentences, `a | b`), and `== name` begins a scene, whose lines are

    a m~ : told so / or so {a} ? asked so / or so # named so, or so
    a = b + c; d = e * f     (sums have two or three parts, products two)

The size after the letter is m (the story's scale), s (2 to 12), p (a price, 2 to 30) or a constant, which is told in words. With `~`
the number may be told as "some", without a `?` it is never asked. Equations are read in order: one whose left side has no value yet
gives it one, one whose left side has splits it. {N} and {Ns} are the main person, by name or pronoun.

Unusual:
- 62 % of the questions, and all of SVAMP's test set, are lower-cased text with spaces before the punctuation.
- Programs name their variables after the words of the story, in several styles, as the programs of SVAMP's authors do.
- A hash of the question's words says which split may hold it, so no question is in two splits, whatever the seeds.
- No solution is wrong on purpose (a quarter of arithmetic's corpus is): on real text the model errs often enough by itself.

Print some: `python -c "from reft_jax.tasks import stories as s; print(*s.generate('train', 5, seed=0, cot='program'), sep='\\n')"`.
Host side: no jax.
"""

import dataclasses
import functools
import itertools
import pathlib
import random
import re
import zlib

from reft_jax.data import files, reader
from reft_jax.data.records import Record, Splits
from reft_jax.data.splits import cut_dev, question_words
from reft_jax.errors import InputError
from reft_jax.tasks import base

FILE = pathlib.Path(__file__).resolve().parents[1] / "assets" / "stories.txt"
SPLITS = ("train", "dev", "test")
COTS = ("program", "nl", "both")
# The hash of a question modulo 8 names the split that may hold it.
RESIDUES = {"train": range(6), "dev": (6,), "test": (7,)}

MAX_NUMBER = 99_999
NUM_OPS = {1: 45, 2: 42, 3: 13}
SCALES = {(2, 12): 25, (2, 60): 40, (2, 99): 18, (20, 999): 12, (100, 9999): 5}
STYLES = {"spaced": 62, "plain": 28, "tokens": 10}
JOINS = ("and", "and", "and", "but", ", and", ", but", "while", "when")
TOTALS = ("in all", "in total", "altogether", "total", "combined", "")


# -------------------------------------------------------------------------------------------------------------- scenes


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One line of a scene; templates are those of `_Teller.say`."""

    size: str
    vague: bool
    tells: tuple[str, ...]
    asks: tuple[str, ...]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Scene:
    name: str
    quantities: dict[str, Quantity]
    equations: tuple[tuple[str, str, tuple[str, ...]], ...]  # (left side, + or *, right side)


@functools.cache
def scenes() -> tuple[tuple[Scene, ...], dict[str, tuple[str, ...]]]:
    """(the scenes, the lists of words) of stories.txt."""
    found, words = [], {}
    for line in FILE.read_text().splitlines():
        if line.startswith("@"):
            name, _, entries = line[1:].partition(" ")
            words[name] = tuple(entries.split(" | " if "|" in entries and name != "whens" else ", "))
        elif line.startswith("== "):
            found.append((line[3:], {}, []))
        elif re.match(r"\w = ", line):
            sides = (equation.split(" = ") for equation in line.split("; "))
            found[-1][2].extend((left, right[2], tuple(right[::4])) for left, right in sides)
        else:
            line, _, named = line.partition("#")
            line, _, asked = line.partition("?")
            head, _, told = line.partition(":")
            letter, size = head.split()
            tells, asks = (tuple(filter(None, map(str.strip, part.split(" / ")))) for part in (told, asked))
            names = tuple(map(str.strip, named.split(",")))
            found[-1][1][letter] = Quantity(size.strip("~"), "~" in size, tells, asks, names)
    return tuple(Scene(name, quantities, tuple(equations)) for name, quantities, equations in found), words


def plural(noun: str) -> str:
    """Of a noun of the word lists; in "piece of paper" the first word has it."""
    first, of, rest = noun.partition(" of ")
    if first.endswith(("s", "x", "ch", "sh")) or first in ("potato", "tomato"):
        first += "es"
    elif first.endswith("f"):
        first = first[:-1] + "ves"
    elif first.endswith("y") and first[-2] not in "aeou":
        first = first[:-1] + "ies"
    else:
        first += "s"
    return first + of + rest


# ----------------------------------------------------------------------------------------------------------- a problem


@dataclasses.dataclass(frozen=True)
class Step:
    """One line of a solution: `left` = the sum or product of `operands`, or (minus, divide) the first without the others."""

    left: str
    op: str  # one of + - * /
    operands: tuple[str, ...]


def numbers(scene: Scene, scale: tuple[int, int], rng: random.Random) -> dict[str, int] | None:
    """A value for each quantity that fulfils the equations; None where these numbers have no solution."""
    values = {}

    def draw(letter):
        size = scene.quantities[letter].size
        if size in "smp":
            low, high = {"s": (2, 12), "p": (2, 30), "m": scale}[size]
            return rng.randint(low, high)
        return int(size)

    for left, op, right in scene.equations:
        unknown = [letter for letter in right if letter not in values]
        if left not in values:
            values |= {letter: draw(letter) for letter in unknown}
            parts = [values[letter] for letter in right]
            values[left] = sum(parts) if op == "+" else parts[0] * parts[1]
            continue
        if op == "*":
            return None
        rest = values[left] - sum(values[letter] for letter in right if letter in values)
        for i, letter in enumerate(unknown):
            high = rest - (len(unknown) - i - 1)
            if high < 1:
                return None
            values[letter] = rest if i == len(unknown) - 1 else rng.randint(1, high)
            rest -= values[letter]
        if rest:
            return None
    scale = (2, max(12, *values.values()))  # what only distracts is of the size of what counts
    values |= {letter: draw(letter) for letter in scene.quantities if letter not in values}
    return values if 1 <= min(values.values()) and max(values.values()) <= MAX_NUMBER else None


@functools.cache
def derivations(num_ops: int) -> tuple[tuple[tuple[Scene, str, tuple[Step, ...], tuple[str, ...]], ...], ...]:
    """Of each scene that has any, all ways to an asked quantity in `num_ops` operations: (scene, target, steps in order, told letters)."""

    def ways(scene, letter, left, used):
        """(steps, leaves) of all derivations of `letter` in at most `left` operations."""
        for equation in scene.equations:
            whole, op, parts = equation
            operands = parts if letter == whole else (whole, *(x for x in parts if x != letter))
            budget = left - len(operands) + 1
            if equation in used or letter not in (whole, *parts) or budget < 0:
                continue
            step = Step(letter, op if letter == whole else {"+": "-", "*": "/"}[op], operands)
            options = [
                ([((), (x,))] if scene.quantities[x].tells else []) + list(ways(scene, x, budget, (*used, equation)))
                for x in operands
            ]
            for choice in itertools.product(*options):
                steps = dict.fromkeys((*(step for steps, _ in choice for step in steps), step))
                leaves = dict.fromkeys(x for _, leaves in choice for x in leaves)
                made = {step.left for step in steps}
                if len(made) == len(steps) and not made & leaves.keys():
                    yield tuple(steps), tuple(leaves)

    found = []
    for scene in scenes()[0]:
        asked = [letter for letter, quantity in scene.quantities.items() if quantity.asks]
        mine = [(scene, x, *way) for x in asked for way in dict.fromkeys(ways(scene, x, num_ops, ()))]
        mine = [way for way in mine if sum(len(step.operands) - 1 for step in way[2]) == num_ops]
        found += [tuple(mine)] if mine else []
    return tuple(found)


def closure(scene: Scene, known: set[str]) -> set[str]:
    """What follows from the known quantities by the scene's equations."""
    known, before = set(known), None
    while known != before:
        before = set(known)
        for left, _, right in scene.equations:
            missing = {left, *right} - known
            if len(missing) == 1:
                known |= missing
    return known


class _Teller:
    """The words of one story: says templates, and remembers whether the main person was named."""

    def __init__(self, rng: random.Random):
        _, words = scenes()
        self.rng, self.named, self.sentence_of_name = rng, False, -1
        gender = rng.randrange(2)
        same, opposite = (words["men"], words["women"])[:: 1 - 2 * gender]
        self.name, third = rng.sample(same, 2)
        self.he, him, his = (("he", "him", "his"), ("she", "her", "her"))[gender]
        friend = rng.choice(opposite)
        items = rng.choice(words["items"])
        others = rng.choice([noun for noun in words["items"] if noun != items])
        foods, animals = rng.choice(words["foods"]), rng.sample(words["animals"], 2)
        kinds, people, stuff = (rng.sample(words[k], num) for k, num in dict(kinds=3, people=2, stuff=2).items())
        when = rng.choice(words["whens"]).split(" | ")
        did, do, work = rng.choice(words["works"]).split("/")
        (gained, gain), (lost, lose) = (rng.choice(words[k]).split("/") for k in ("gained", "lost"))
        box, relative = rng.choice(words["boxes"]), rng.choice(words["relatives"])
        self.words = dict(
            name=self.name, friend=friend, third=third, he=self.he, him=him, his=his, relative=relative,
            giver=rng.choice((friend, f"{his} {relative}")),
            item=items, items=plural(items), other=others, others=plural(others), foods=plural(foods), food=foods,
            kind=kinds[0], kind2=kinds[1], kind3=kinds[2], box=box, boxes=plural(box), place=rng.choice(words["places"]),
            people=people[0], people2=people[1], when=when[0], when2=when[1], when3=when[2],
            did=did, do=do, works=plural(work), gained=gained, gain=gain, lost=lost, lose=lose,
            animals=plural(animals[0]), animals2=plural(animals[1]), stuff=stuff[0], stuff2=stuff[1],
            long=rng.choice(words["longs"]), tree=rng.choice(words["trees"]), ran=rng.choice(words["rans"]),
        )  # fmt: skip
        self.money = rng.choice(("$ {}", "$ {}", "{} dollars", "{} dollars"))

    def say(self, template: str, shown: dict[str, str]) -> str:
        """The template in words; `shown` has the numbers as text, by letter."""

        def fill(found):
            slot = found[1]
            if slot in ("N", "Ns"):
                named, self.named = self.named, True
                if named and self.rng.random() < 0.65:
                    return self.he if slot == "N" else self.words["his"]
                return self.name + "'s" * (slot == "Ns")
            if slot == "name":
                self.named = True
            if slot == "total":
                return self.rng.choice(TOTALS)
            if slot in shown:
                return shown[slot]
            if slot.startswith("money_"):
                text = shown[slot[-1]]
                return f"{text} money" if text == "some" else self.money.format(text)
            return self.words[slot]

        return " ".join(re.sub(r"\{(\w+)\}", fill, template).split())

    def phrase(self, quantity: Quantity) -> str:
        """What a quantity is called, in lower-case words."""
        names = quantity.names
        return self.say(names[0] if self.rng.random() < 0.6 else self.rng.choice(names), {}).lower()


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question and all that its solutions are written from; letters are a scene's quantities."""

    question: str
    target: str
    steps: tuple[Step, ...]
    told: list[str]  # letters whose number is in the text, in its order
    needed: list[str]  # those of them that the solution uses
    values: dict[str, int]
    shown: dict[str, str]  # the numbers as they are spelt
    phrases: dict[str, str]
    tags: dict


def problem(rng: random.Random) -> Problem:
    """A random problem: the scene, then the way to its answer, then numbers, which are redrawn until they come out."""
    num_ops = base.draw(rng, NUM_OPS)
    scene, target, steps, needed = rng.choice(rng.choice(derivations(num_ops)))
    while (values := numbers(scene, base.draw(rng, SCALES), rng)) is None:
        pass
    extra = _distractors(scene, target, steps, needed, rng)
    teller = _Teller(rng)
    decimal = ".0" if rng.random() < 0.04 else ""
    shown = {x: f"{value}{decimal * (not scene.quantities[x].size.isdigit())}" for x, value in values.items()}
    told = [letter for letter in scene.quantities if letter in needed or letter in extra]
    clauses = []
    for letter, quantity in scene.quantities.items():
        if letter in told:
            clauses.append(teller.say(rng.choice(quantity.tells), shown))
        elif quantity.vague and rng.random() < 0.4:
            clauses.append(teller.say(rng.choice(quantity.tells), shown | {letter: "some"}))
    outside = rng.random() < 0.15
    text = _assemble(teller, clauses, rng.choice(scene.quantities[target].asks), shown, outside)
    return Problem(
        question=_styled(text, base.draw(rng, STYLES)),
        target=target,
        steps=steps,
        told=told,
        needed=[letter for letter in told if letter in needed],
        values=values,
        shown=shown,
        phrases={letter: teller.phrase(quantity) for letter, quantity in scene.quantities.items()},
        tags={"scene": scene.name, "num_ops": num_ops, "distractor": bool(extra) or outside},
    )


def _distractors(scene, target, steps, needed, rng) -> set[str]:
    """Further quantities to tell, from which nothing that the solution makes could be had another way."""
    extra = set()
    if rng.random() < 0.5:
        made, free = {step.left for step in steps}, [x for x, q in scene.quantities.items() if q.tells]
        for letter in rng.sample(free, len(free)):
            known = closure(scene, set(needed) | extra)
            if letter not in known and letter != target and len(extra) < 2 and not made & {letter}:
                extra.add(letter)
    return extra


def _assemble(teller, clauses, ask, shown, outside) -> str:
    """Sentences from clauses, and the question at the end (or, now and then, before the last of them)."""
    rng, (_, words) = teller.rng, scenes()
    sentences, i = [], 0
    last = len(clauses) - 1
    question = teller.say(ask, shown)
    way = rng.random()
    hangs = way < 0.38 and not clauses[last].startswith(("now ", "in the end", "then ", "later "))
    while i <= last - hangs:
        joined = i + 1 <= last - hangs and rng.random() < 0.18
        sentences.append(f"{clauses[i]} {rng.choice(JOINS)} {clauses[i + 1]}" if joined else clauses[i])
        i += 1 + joined
    if hangs:
        question = f"if {clauses[last]} , {question}" if way < 0.3 else f"{question} if {clauses[last]}"
    if outside:
        said = teller.say(rng.choice(words["distractions"]), {"x": str(rng.randint(2, 60))})
        sentences.insert(rng.randint(min(1, len(sentences)), len(sentences)), said)
    if rng.random() < 0.2:
        sentences.insert(0, teller.say(rng.choice(words["openings"]), {}))
    return " . ".join([*sentences, question]) + " ?"


def _styled(text: str, style: str) -> str:
    """`text` has its punctuation spaced. spaced: as SVAMP's test set; tokens: the same with capitals; plain: as people write."""
    if style == "spaced":
        return text.lower().replace(" , ", " ").replace("'s", " 's")
    text = re.sub(r"(^|[.?] )([a-z])", lambda found: found[1] + found[2].upper(), text)
    return text.replace("'s", " 's") if style == "tokens" else re.sub(r" ([.,?])", r"\1", text).replace("$ ", "$")


# ----------------------------------------------------------------------------------------------------------- solutions


def expression(step: Step, text_of: dict[str, str], rng: random.Random, divide: str) -> str:
    """One step's right side on one line, in one of its orders."""
    parts = [text_of[letter] for letter in step.operands]
    if step.op in "+*" and rng.random() < 0.3:
        parts.reverse()
    if step.op == "-" and len(parts) > 2 and rng.random() < 0.4:
        return f"{parts[0]} - ({' + '.join(parts[1:])})"
    return f" {divide if step.op == '/' else step.op} ".join(parts)


def program(story: Problem, rng: random.Random) -> str:
    """A program that names its variables after the story's words: what is given, the steps, the result."""
    prefix = rng.choice(("num_", "num_", "", ""))
    names = _names(story, prefix)
    given = story.told if rng.random() < 0.2 else story.needed
    if rng.random() < 0.2:  # what the first step reads comes first
        given = sorted(given, key=lambda letter: [*story.steps[0].operands, letter].index(letter))
    divide = rng.choice(("/", "//"))
    lines = [f"{names[letter]} = {story.shown[letter]}" for letter in given]
    text_of, whole = dict(names), rng.random() < 0.12
    for step in story.steps:
        right = expression(step, text_of, rng, divide)
        if whole and step.left != story.target:
            text_of[step.left] = f"({right})"
        elif step.left == story.target and (whole or rng.random() < 0.15):
            lines.append(f"result = {right}")
        else:
            lines.append(f"{names[step.left]} = {right}")
    if not lines[-1].startswith("result"):
        lines.append(f"result = {names[story.target]}")
    return "def solution():\n" + "".join(f"    {line}\n" for line in lines) + "    return result"


def _names(story: Problem, prefix: str) -> dict[str, str]:
    """A different variable for each letter."""
    names = {}
    for letter, phrase in story.phrases.items():
        name = re.sub(r"\W+", "_", phrase.replace("'s", "")).strip("_")
        if not phrase.startswith(("total", "more", "dollar", "cost", "price", "number")):
            name = prefix + name
        name = "n_" * name[0].isdigit() + name
        while name in names.values():
            name += "_2"
        names[letter] = name
    return names


VERBS = {"+": ("add", "sum up"), "-": ("subtract", "take the difference of"), "*": ("multiply",), "/": ("divide",)}


def prose(story: Problem, rng: random.Random) -> str:
    """The same in words and equations, with the closing sentence of SVAMP's N-CoT."""
    worded, blank = rng.random() < 0.6, rng.choice(("\n\n", "\n\n", "\n", " "))
    lines = []
    for step in story.steps:
        phrases = story.phrases
        if rng.random() < 0.6:
            found = rng.choice(("To find", "To get", "To find out"))
            lines.append(f"{found} the {phrases[step.left]}, we need to {rng.choice(VERBS[step.op])} the numbers:")
        values = {letter: str(value) for letter, value in story.values.items()}
        text_of = {x: f"{values[x]} {phrases[x]}" for x in step.operands} if worded else values
        result = f"{values[step.left]} {phrases[step.left]}" if worded or rng.random() < 0.3 else values[step.left]
        lines.append(f"{expression(step, text_of, rng, '/')} = {result}")
    if rng.random() < 0.6:
        so = rng.choice(("Therefore, it is", "So there are", "Therefore, the result is", "That makes"))
        lines.append(f"{so} {story.values[story.target]} {story.phrases[story.target]}.")
    lines.append(f"Therefore, the answer is <{story.values[story.target]}>.")
    return blank.join(lines)


# --------------------------------------------------------------------------------------------------------- the data set


def generate(split: str, num: int, *, seed: int, cot: str) -> tuple[Record, ...]:
    """The first `num` records of a split: a longer one begins with a shorter one. `cot` "both": each record is of either kind, and
    is the complete target (kind "text"); the question does not depend on it. Test records have no CoT."""
    for name, value, legal in (("split", split, SPLITS), ("cot", cot, COTS)):
        if value not in legal:
            raise InputError(f"{name}: got {value!r}; legal are {', '.join(legal)}")
    seen, records = set(), []
    for index in range(num):
        rng = random.Random(f"stories/{split}/{seed}/{index}")
        while True:
            story = problem(rng)
            words = question_words(story.question)
            if words not in seen and belongs(words, split):
                break
        seen.add(words)
        own = random.Random(f"{split}/{seed}/{index}/{cot}")
        records.append(_record(story, own, f"stories_{split}_{index}", split, cot))
    return tuple(records)


def belongs(words: str, split: str) -> bool:
    """Whether this split may hold a question of these words."""
    return zlib.crc32(words.encode()) % 8 in RESIDUES[split]


def _record(story: Problem, rng: random.Random, item_id: str, split: str, cot: str) -> Record:
    kind = rng.choice(("program", "nl")) if cot == "both" else cot
    answer = str(story.values[story.target])
    text = "" if split == "test" else program(story, rng) if kind == "program" else prose(story, rng)
    if cot == "both" and kind == "nl" and text:
        text = f"{text}\nTherefore, the answer is: {answer}"
    shown = "text" if cot == "both" and split == "train" else kind
    return Record(item_id, story.question, text, answer, shown, tags=story.tags)


# ------------------------------------------------------------------------------------------------------------ the task


@dataclasses.dataclass(frozen=True)
class Task(base.Generated):
    reads_questions = True

    def check(self, data):
        if data.annotations not in ("diverse", "corpus"):
            legal = "diverse (all CoTs of the kind data.cot) and corpus (programs and prose)"
            yield "annotations", f"legal for stories are {legal}"
        yield from super().check(data)

    def make(self, split: str, num: int, data) -> tuple[Record, ...]:
        both = split == "train" and data.annotations == "corpus"
        return generate(split, num, seed=data.seed, cot="both" if both else data.cot)

    def splits(self, data) -> Splits:
        """Generated stories, and the questions of a training file as text without a solution, where the question is what is learnt: each
        once, and at most as many as stories. What a run on that file takes as its dev split (seed 0) is left out, with as many again:
        the files with P-CoT and with N-CoT do not hold quite the same questions. So is what differs from these in punctuation alone."""
        made = super().splits(data)
        if not data.questions_file:
            return made
        rows = [reader.Row(*found, i) for i, found in enumerate(files.read_raw(data.questions_file))]
        texts = [Record(f"question_{row.index}", row.text("question"), "", "", "text", place=row.place) for row in rows]
        held_out = {question_words(record.question) for record in cut_dev(texts, 2 * data.dev_size, seed=0)[1]}
        kept = [record for record in texts if question_words(record.question) not in held_out]
        learnt = (dataclasses.replace(record, question="", cot=record.question) for record in kept[: data.num_train])
        note = f"{len(kept)} of {len(texts)} questions of {data.questions_file} may be read as text, a dev split not"
        return dataclasses.replace(made, train=(*made.train, *learnt), notes=(note,))
