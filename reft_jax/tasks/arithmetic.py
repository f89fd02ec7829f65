"""Generated word problems: the data set `arithmetic`, its pretraining corpus and its closed word-level vocabulary.

A problem is an expression tree (`expressions.py`) told as a story. The same expression can be
solved along many valid paths, and an annotation shows one of them: that one-of-many relation between question and gold
reasoning is what ReFT exploits (ReFT, section 3.2), and `annotations` sets how much of it the gold shows.

Unusual:
- The stories of train, dev and test have 3 or 4 operations and tell each event, with probability 1/2, in a phrasing
  that the pretraining corpus never uses. The target lies outside the corpus on purpose.
- A hash of the question's text says which split may hold it, so no question is in two splits, whatever the seeds.
- 25 % of the corpus is sloppy: a wrong operation or number, or a step left out, so that the answer is wrong.
- The text is cut by one regex, `PIECE`, and `vocabulary()` is read off the templates below, not off samples.

Print some: `python -c "from reft_jax.tasks import arithmetic as a; print(*a.generate('train', 5, seed=0,
cot='program', annotations='diverse'), sep='\\n')"`. Host side: no jax.
"""

import dataclasses
import functools
import random
import re
import string
import zlib

from reft_jax.data.records import Record
from reft_jax.errors import InputError
from reft_jax.tasks import base
from reft_jax.tasks.expressions import MAX_NUMBER, MIN_NUMBER, Expr, rewrite, shuffled, spoil, steps, value

SPLITS = ("pretrain", "train", "dev", "test")
COTS = ("program", "nl")
ANNOTATIONS = ("diverse", "canonical", "worked", "corpus")

MAX_QUESTION = 46  # pieces; longer questions are redrawn (7 % of the target's, 1 % of the corpus's)
MAX_RESPONSE = {"program": 35, "nl": 47, "text": 35}  # pieces of a complete target, end-of-sequence not counted

# The hash of a question modulo 8 names the splits that may hold it. The corpus is by far the largest: five residues.
RESIDUES = {"pretrain": (0, 1, 2, 3, 4), "train": (5,), "dev": (6,), "test": (7,)}

DISTRACTOR_PROBABILITY = 0.25
NEW_PHRASING_PROBABILITY = 0.5
SLOPPY_PROBABILITY = 0.25
BARE_PROBABILITY = 0.1

FAMILY_WEIGHTS = {"chain": 30, "compare": 14, "boxes": 14, "earnings": 12, "sharing": 12, "shopping": 12}
NUM_OPS_WEIGHTS = {"pretrain": {1: 20, 2: 32, 3: 33, 4: 15}, "target": {3: 2, 4: 1}}
STYLE_WEIGHTS = {
    "corpus": {"steps_v": 4, "steps_abc": 2, "expression": 1, "answer": 1, "nl": 1, "equations": 1},
    ("program", "diverse"): {"steps_v": 4, "steps_abc": 3, "expression": 3},
    ("program", "worked"): {"steps_v": 4, "steps_abc": 3},
    ("program", "canonical"): {"steps_v": 1},
    ("nl", "diverse"): {"nl_lines": 4, "nl_words": 3, "nl_expression": 3},
    ("nl", "worked"): {"nl_lines": 4, "nl_words": 3},
    ("nl", "canonical"): {"nl_lines": 1},
}

# ---------------------------------------------------------------------------------------------------------------- text

MEN = ("Tom", "Ben", "Sam", "Leo", "Max", "Dan", "Jack", "Paul")
WOMEN = ("Ann", "Mia", "Eva", "Lily", "Kate", "Rose", "Emma", "Nina")
ITEMS = tuple("apples balls books cards coins cookies marbles pencils shells stamps stickers toys".split())
PRONOUNS = {"He": ("He", "She"), "he": ("he", "she"), "him": ("him", "her"), "his": ("his", "her")}

# Slots: {name} acts, {friend} is of the other gender (so that he and she stay clear), {third} is one more
# person; {items} are counted, {goods} are bought besides, {other} only distracts; {x}, {y}, {z} are numbers.
# First column: seen in the corpus and in the target. Second column: the target alone.
PHRASES = {
    # openings: always the first sentence
    "has": (("{name} has {x} {items}.",), ()),
    "boxes": (("{name} has {x} boxes with {y} {items} in each.",), ()),
    "price": (("The shop has {items} for {x} dollars each.",), ()),
    "works": (("{name} works {x} days and earns {y} dollars per day.",), ()),
    "works_tips": (("Each day for {x} days {name} earns {y} dollars and gets {z} dollars in tips.",), ()),
    "works_spends": (("Each day for {x} days {name} earns {y} dollars and spends {z} dollars.",), ()),
    "shops": (("{name} buys {x} {items} for {y} dollars each.",), ()),
    # changes of a number of items
    "gain": (
        ("{He} buys {x} more {items}.", "{He} finds {x} {items}."),
        ("{He} wins {x} {items}.", "{He} gets {x} {items} from {friend}."),
    ),
    "lose": (
        ("{He} sells {x} {items}.", "{He} loses {x} {items}.", "{He} gives {x} {items} to {friend}."),
        ("{He} hands {x} {items} to {friend}.", "{He} gives {friend} {x} {items}."),
    ),
    "friend_gives": (("{friend} gives {him} {x} {items}.",), ()),
    "friend_takes": (("{friend} takes {x} of {his} {items}.",), ("{He} loses {x} {items} to {friend}.",)),
    "bags": (
        ("{He} buys {x} bags with {y} {items} each.", "{He} finds {x} bags with {y} {items} each."),
        ("{friend} gives {him} {x} bags with {y} {items} each.",),
    ),
    "to_each": (("{He} gives {y} {items} to each of {x} friends.",), ("{He} gives {x} friends {y} {items} each.",)),
    "doubles": (("Then {he} doubles {his} collection.",), ("Then {he} has twice as many {items} as before.",)),
    "triples": (("Then {he} triples {his} collection.",), ("Then {he} has 3 times as many {items} as before.",)),
    "half": (
        ("{He} gives half of {his} {items} to {friend}.", "{He} sells half of {his} {items}."),
        ("{friend} takes half of {his} {items}.",),
    ),
    # boxes
    "fill": (("{He} puts {x} more {items} in each box.",), ("{friend} puts {x} more {items} in each box.",)),
    "empty": (("{He} sells {x} {items} from each box.",), ("{friend} takes {x} {items} from each box.",)),
    "more_boxes": (("{He} buys {x} more of these boxes.",), ()),
    "fewer_boxes": (("{He} gives {x} of the boxes to {friend}.",), ()),
    # compare: {friend} is described through {name}; the caller puts the right people there
    "more": (("{friend} has {x} more {items} than {name}.",), ("{friend} has {x} {items} more than {name}.",)),
    "fewer": (("{friend} has {x} fewer {items} than {name}.",), ("{friend} has {x} {items} fewer than {name}.",)),
    "times": (("{friend} has {x} times as many {items} as {name}.",), ()),
    "twice": (("{friend} has twice as many {items} as {name}.",), ()),
    "half_as_many": (("{friend} has half as many {items} as {name}.",), ()),
    # money
    "spend": (("{He} spends {x} dollars.",), ("{He} pays {x} dollars for lunch.",)),
    "receive": (("{friend} gives {him} {x} dollars.", "{He} finds {x} dollars."), ("{He} wins {x} dollars.",)),
    "spend_each": (("{He} buys {x} {goods} for {y} dollars each.",), ("{He} pays {y} dollars each for {x} {goods}.",)),
    "works_more": (("Then {he} works {x} more days for {y} dollars per day.",), ()),
    # shopping
    "price_up": (("The price goes up by {x} dollars.",), ("The price is {x} dollars more now.",)),
    "price_down": (("The price goes down by {x} dollars.",), ("The shop takes {x} dollars off the price.",)),
    "buys_at_price": (("Then {name} buys {x} {items}.",), ()),
    "also_buys": (("{He} also buys {x} {goods} for {y} dollars each.",), ()),
    "shipping": (("{He} also pays {x} dollars for shipping.",), ()),
    "off": (("The shop takes {x} dollars off the bill.",), ("The bill goes down by {x} dollars.",)),
    "bill_shared": (("Then {x} friends share the bill equally.",), ("Then {x} friends split the bill equally.",)),
    # sharing
    "shares": (
        ("Then {x} friends share all {his} {items} equally.",),
        ("Then {x} friends split all {his} {items} equally.",),
    ),
    "one_share": (("{third} has {x} {items} and gets one share.",), ()),
    "packs": (("{He} puts all {his} {items} in bags of {x}.",), ()),
    "more_bags": (("{He} buys {x} more of these bags.",), ()),
    "fewer_bags": (("{He} sells {x} of the bags.",), ()),
}
OPENINGS = ("has", "boxes", "price", "works", "works_tips", "works_spends", "shops")
QUESTIONS = {
    "have_now": ("How many {items} does {name} have now?", "How many {items} does {he} have now?"),
    "richer": ("How many dollars richer is {name} now?",),  # not "has": what was there before the story is unknown
    "earned": ("How many dollars does {name} earn?",),
    "pay": ("How many dollars does {name} pay?",),
    "friend_pays": ("How many dollars does each friend pay?",),
    "in_each_share": ("How many {items} are in each share?",),
    "third_has": ("How many {items} does {third} have now?",),
    "num_bags": ("How many bags does {name} have now?",),
    "person_has": ("How many {items} does {name} have?",),
    "difference": ("How many more {items} does {name} have than {friend}?",),
    "two_together": ("How many {items} do {name} and {friend} have together?",),
    "three_together": ("How many {items} do {name}, {friend} and {third} have together?",),
}
DISTRACTORS = ("{name} is {x} years old.", "{friend} has {x} {other}.", "{friend} buys {x} {other}.")

PROMPT_PIECES = ("Question:\n", "\nAnswer reasoning:\n")
PROGRAM_HEAD = "def solution():\n"
ANSWER_SENTENCE = "\nTherefore, the answer is:"
V_NAMES = ("v0", "v1", "v2", "v3", "v4")
ABC_NAMES = ("a", "b", "c", "d", "e")
MAX_STEPS = len(V_NAMES)

# Digits and variable names are single pieces; a word takes the space before it along; indentation goes with the word
# that follows, and a line's end is a piece, so that the program's first line can be cut off as a prefix.
PIECE = (
    r"Question:\n|\nAnswer reasoning:\n|\nTherefore, the answer is:|def solution\(\):\n"
    r'|    (?:v[0-9]|[a-z]+|""")|"""'
    r"| ?v[0-9]| ?[A-Za-z]+| ?[0-9]| ?//| ?[^A-Za-z0-9\s]|\s"
)
_PIECE = re.compile(PIECE)


def pieces(text: str) -> list[str]:
    """The pieces of `text`, in order; their concatenation is `text`."""
    return _PIECE.findall(text)


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every piece that can occur in a prompt, docstring or target of this data set, sorted.

    A piece spans at most one word and the space before it, so each template is cut once per filler of each slot.
    """
    found = {"\n", '    """', '"""', PROGRAM_HEAD, ANSWER_SENTENCE, *PROMPT_PIECES}
    fillers = PRONOUNS | dict.fromkeys(("name", "friend", "third"), MEN + WOMEN)
    fillers |= dict.fromkeys(("items", "goods", "other"), ITEMS) | dict.fromkeys("xyz", string.digits)
    firsts = [t for opening in OPENINGS for column in PHRASES[opening] for t in column]
    others = [t for phrase, columns in PHRASES.items() if phrase not in OPENINGS for column in columns for t in column]
    others += [t for group in QUESTIONS.values() for t in group] + list(DISTRACTORS)
    for template in firsts + [" " + other for other in others]:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(template) if slot}
        example = {slot: fillers[slot][0] for slot in slots}
        found.update(pieces(template.format(**example)))
        for slot in slots:
            for filler in fillers[slot]:
                found.update(pieces(template.format(**{**example, slot: filler})))
    found.update(pieces("What is"))
    for digit in string.digits:
        found.update((digit, " " + digit))
    for name in V_NAMES + ABC_NAMES:
        found.update(("    " + name, " " + name))
    # the calculation language: " (" opens a line's expression, "(" stands inside one or at the start of a text
    found.update((" +", " -", " *", " /", " //", " =", " (", "(", ")", ",", ".", "?", "    return"))
    found.update((" Then", " is"))
    return tuple(sorted(found))


# ----------------------------------------------------------------------------------------------------------- reasoning


def infix(expr: Expr, *, divide: str) -> str:
    """`expr` on one line, every inner operation in parentheses; `divide` is the sign for division."""
    if isinstance(expr, int):
        return str(expr)
    left, right = (
        infix(side, divide=divide) if isinstance(side, int) else f"({infix(side, divide=divide)})" for side in expr[1:]
    )
    return f"{left} {divide if expr[0] == '/' else expr[0]} {right}"


def program(order: list[tuple], names: tuple[str, ...]) -> str:
    """A stepwise program: one assignment per operation, in the given order."""
    name_of = dict(zip(order, names, strict=False))
    lines = []
    for node in order:
        left, right = (side if isinstance(side, int) else name_of[side] for side in node[1:])
        lines.append(f"    {name_of[node]} = {left} {'//' if node[0] == '/' else node[0]} {right}\n")
    return f"{PROGRAM_HEAD}{''.join(lines)}    return {name_of[order[-1]]}"


def equations(order: list[tuple], *, equals: str = "=") -> list[str]:
    """One worked equation per operation: `12 + 5 = 17`."""
    return [f"{value(left)} {op} {value(right)} {equals} {value((op, left, right))}" for op, left, right in order]


def reasoning(style: str, expr: tuple, order: list[tuple]) -> str:
    """The text of `expr` in `style`; for the N-CoT styles without the closing answer sentence."""
    if style in ("steps_v", "steps_abc"):
        return program(order, V_NAMES if style == "steps_v" else ABC_NAMES)
    if style == "expression":
        return f"{PROGRAM_HEAD}    return {infix(expr, divide='//')}"
    if style == "answer":
        return f"{PROGRAM_HEAD}    return {value(expr)}"
    if style == "equations":
        return ", ".join(equations(order))
    if style == "nl_lines":
        return "\n".join(equations(order))
    if style == "nl_words":
        first, *others = equations(order, equals="is")
        return " ".join([f"{first}.", *(f"Then {other}." for other in others)])
    return f"{infix(expr, divide='/')} = {value(expr)}"  # nl_expression


def annotate(expr: tuple, rng: random.Random, *, cot: str, annotations: str) -> tuple[str, str]:
    """(style, correct reasoning) for `expr`; `canonical` does not use `rng`. Too long an annotation is redrawn."""
    weights = STYLE_WEIGHTS[cot, annotations]
    if annotations == "canonical":
        style = next(iter(weights))
        return style, reasoning(style, expr, steps(expr))
    style = base.draw(rng, weights)
    while True:
        path = rewrite(expr, rng)
        order = shuffled(steps(path), rng)
        if len(order) <= MAX_STEPS:
            text = reasoning(style, path, order)
            full = text if cot == "program" else f"{text}{ANSWER_SENTENCE} {value(path)}"
            if len(pieces(full)) <= MAX_RESPONSE[cot]:
                return style, text


# ------------------------------------------------------------------------------------------------------------- stories


class _Teller:
    """Collects the sentences of one story and remembers whether a new phrasing was used."""

    def __init__(self, rng: random.Random, new_probability: float):
        self.rng, self.new_probability = rng, new_probability
        self.sentences, self.num_new, self.question = [], 0, ""
        gender = rng.randrange(2)
        same, opposite = (MEN, WOMEN) if gender == 0 else (WOMEN, MEN)
        name, third = rng.sample(same, 2)
        items, goods, other = rng.sample(ITEMS, 3)
        self.words = {slot: forms[gender] for slot, forms in PRONOUNS.items()}
        self.words |= dict(name=name, friend=rng.choice(opposite), third=third, items=items, goods=goods, other=other)

    def say(self, phrase: str, x: int = 0, y: int = 0, z: int = 0, **people: str) -> None:
        templates, new = PHRASES[phrase]
        if new and self.rng.random() < self.new_probability:
            templates = new
            self.num_new += 1
        self.sentences.append(self.rng.choice(templates).format(**{**self.words, **people, "x": x, "y": y, "z": z}))

    def ask(self, question: str, **people: str) -> None:
        self.question = self.rng.choice(QUESTIONS[question]).format(**{**self.words, **people})

    def distract(self) -> None:
        words = {**self.words, "x": self.rng.randint(MIN_NUMBER, MAX_NUMBER)}
        self.sentences.insert(self.rng.randint(1, len(self.sentences)), self.rng.choice(DISTRACTORS).format(**words))

    def text(self) -> str:
        return " ".join([*self.sentences, self.question])


def _number(rng, high=MAX_NUMBER):
    return rng.randint(MIN_NUMBER, max(MIN_NUMBER, min(high, MAX_NUMBER)))


def _group(rng):
    """(number of groups, size of each)."""
    return rng.randint(2, 9), rng.randint(2, 15)


def _changed(tell, expr, more, fewer, most):
    """Tells that a number grows (the phrase `more`, by at most `most`) or shrinks (`fewer`); the expression after it."""
    grows = tell.rng.random() < 0.5
    x = _number(tell.rng, most if grows else value(expr) - 1)
    tell.say(more if grows else fewer, x)
    return ("+" if grows else "-", expr, x)


def _divisor(rng, total):
    """A number of equal parts of `total`, each of 2 or more; None where there is none."""
    divisors = [d for d in range(2, 13) if total is not None and total % d == 0 and d < total]
    return rng.choice(divisors) if divisors else None


ONE_STEP = ("gain", "gain", "lose", "lose", "friend_gives", "friend_takes", "doubles", "triples", "half")
TWO_STEPS = ("bags", "to_each")


def _events(tell, expr, num_ops, *, one=ONE_STEP, two=TWO_STEPS):
    """Tells events that change a number of items by `num_ops` operations; the expression after them."""
    rng = tell.rng
    while num_ops:
        wide = bool(two) and num_ops >= 2 and rng.random() < 0.35
        event = rng.choice(two if wide else one)
        now = value(expr)
        if now is None:
            return expr
        if wide:
            x, y = _group(rng)
            tell.say(event, x, y)
            expr = ("+" if event == "bags" else "-", expr, ("*", x, y))
        elif event in ("doubles", "triples"):
            tell.say(event)
            expr = ("*", expr, 2 if event == "doubles" else 3)
        elif event == "half":
            tell.say(event)
            expr = ("/", expr, 2)
        else:
            grows = event in ("gain", "friend_gives")
            x = _number(rng) if grows else _number(rng, now - 1)
            tell.say(event, x)
            expr = ("+" if grows else "-", expr, x)
        num_ops -= 2 if wide else 1
    return expr


def _chain(tell, num_ops):
    start = _number(tell.rng)
    tell.say("has", start)
    expr = _events(tell, start, num_ops)
    tell.ask("have_now")
    return expr


def _compare(tell, num_ops):
    """People described one through another; asked for the last, or for a difference or a sum of the last ones."""
    rng = tell.rng
    num_asked = rng.choice([n for n in (0, 1, 1, 2) if n < num_ops])  # operations in the question itself
    num_related = num_ops - num_asked
    people = rng.sample(MEN + WOMEN, num_related + 1)
    held = [_number(rng)]
    tell.say("has", held[0], name=people[0])
    for index in range(1, num_related + 1):
        relation = rng.choice(("more", "more", "fewer", "fewer", "times", "twice", "half_as_many"))
        before = held[-1]
        now = value(before)
        if now is None:
            return None
        x = {"times": rng.randint(3, 6), "fewer": _number(rng, now - 1)}.get(relation) or _number(rng)
        tell.say(relation, x, name=people[index - 1], friend=people[index])
        expr = {
            "more": ("+", before, x),
            "fewer": ("-", before, x),
            "times": ("*", before, x),
            "twice": ("*", before, 2),
            "half_as_many": ("/", before, 2),
        }[relation]
        held.append(expr)
    if num_asked == 0:
        tell.ask("person_has", name=people[-1])
        return held[-1]
    if num_asked == 2:
        if len(people) < 3:
            return None
        tell.ask("three_together", name=people[-3], friend=people[-2], third=people[-1])
        return ("+", ("+", held[-3], held[-2]), held[-1])
    told = held[-1][0] in "+-"  # the story itself states that difference
    if not told and rng.random() < 0.5:
        tell.ask("difference", name=people[-1], friend=people[-2])
        return ("-", held[-1], held[-2])
    tell.ask("two_together", name=people[-2], friend=people[-1])
    return ("+", held[-2], held[-1])


def _boxes(tell, num_ops):
    rng = tell.rng
    boxes, each = _group(rng)
    tell.say("boxes", boxes, each)
    num_changes = rng.choice([n for n in (0, 1, 1, 2) if n < num_ops])
    changes = rng.sample(("box", "each"), num_changes)
    if "box" in changes:  # before the others: what would a box bought after those were filled hold?
        boxes = _changed(tell, boxes, "more_boxes", "fewer_boxes", 9)
    if "each" in changes:
        each = _changed(tell, each, "fill", "empty", 12)
    events = ("gain", "lose", "friend_gives", "friend_takes")
    expr = _events(tell, ("*", boxes, each), num_ops - 1 - num_changes, one=events)
    tell.ask("have_now")
    return expr


def _earnings(tell, num_ops):
    rng = tell.rng
    days, pay = rng.randint(2, 9), _number(rng)
    if num_ops >= 2 and rng.random() < 0.35:
        grows = rng.random() < 0.5
        extra = _number(rng, 15 if grows else pay - 1)
        tell.say("works_tips" if grows else "works_spends", days, pay, extra)
        expr, rest = ("*", days, ("+" if grows else "-", pay, extra)), num_ops - 2
    else:
        tell.say("works", days, pay)
        expr, rest = ("*", days, pay), num_ops - 1
    tell.ask("earned" if num_ops == 1 else "richer")
    while rest:
        if rest >= 2 and rng.random() < 0.4:
            x, y = _group(rng)
            grows = rng.random() < 0.4
            tell.say("works_more" if grows else "spend_each", x, y)
            expr = ("+" if grows else "-", expr, ("*", x, y))
            rest -= 2
        else:
            x, grows = _number(rng), rng.random() < 0.4
            tell.say("receive" if grows else "spend", x)
            expr = ("+" if grows else "-", expr, x)
            rest -= 1
    return expr


def _sharing(tell, num_ops):
    """Items divided among friends or into bags, with events before and perhaps one after."""
    rng = tell.rng
    start = _number(rng)
    tell.say("has", start)
    after = num_ops >= 2 and rng.random() < 0.5
    packs = rng.random() < 0.4
    # no other bags before the bags are counted, no other friends before the friends share
    expr = _events(tell, start, num_ops - 1 - after, two=() if packs else ("bags",))
    parts = _divisor(rng, value(expr))
    if parts is None:
        return None
    expr = ("/", expr, parts)
    if packs:
        tell.say("packs", parts)
        tell.ask("num_bags")
        return _changed(tell, expr, "more_bags", "fewer_bags", 12) if after else expr
    tell.say("shares", parts)
    tell.ask("third_has" if after else "in_each_share")
    if after:
        x = _number(rng)
        tell.say("one_share", x)
        expr = ("+", expr, x)
    return expr


def _shopping(tell, num_ops):
    rng = tell.rng
    count, price = _group(rng)
    rest = num_ops - 1
    if rest and rng.random() < 0.35:
        grows = rng.random() < 0.5
        change = _number(rng, 12 if grows else price - 1)
        tell.say("price", price)
        tell.say("price_up" if grows else "price_down", change)
        tell.say("buys_at_price", count)
        expr = ("*", count, ("+" if grows else "-", price, change))
        rest -= 1
    else:
        tell.say("shops", count, price)
        expr = ("*", count, price)
    shared = rest > 0 and rng.random() < 0.3
    rest -= shared
    extras = {"also_buys": 2, "shipping": 1, "off": 1}  # operations; each is told at most once
    while rest:
        fitting = [extra for extra, cost in extras.items() if cost <= rest]
        if not fitting:
            return None
        extra = rng.choice(fitting)
        rest -= extras.pop(extra)
        if extra == "also_buys":
            x, y = _group(rng)
            tell.say(extra, x, y)
            expr = ("+", expr, ("*", x, y))
        else:
            x = _number(rng)
            tell.say(extra, x)
            expr = ("+" if extra == "shipping" else "-", expr, x)
    if not shared:
        tell.ask("pay")
        return expr
    parts = _divisor(rng, value(expr))
    if parts is None:
        return None
    tell.say("bill_shared", parts)
    tell.ask("friend_pays")
    return ("/", expr, parts)


FAMILIES = dict(chain=_chain, compare=_compare, boxes=_boxes, earnings=_earnings, sharing=_sharing, shopping=_shopping)


def _bare(rng, num_ops):
    """A random expression of `num_ops` operations, or None if a value falls outside the range."""
    expr = _number(rng)
    for _ in range(num_ops):
        other = _number(rng)
        op = rng.choice("+-*/")
        expr = (op, expr, other) if rng.random() < 0.75 else (op, other, expr)
    return expr if value(expr) is not None else None


def problem(rng: random.Random, *, split: str) -> tuple[str, tuple, dict]:
    """(question, expression, tags) of one problem; draws again until every value and the length are in range."""
    target = split != "pretrain"
    num_ops = base.draw(rng, NUM_OPS_WEIGHTS["target" if target else "pretrain"])
    if not target and rng.random() < BARE_PROBABILITY:
        num_ops = rng.choice((2, 3))  # there are too few bare questions of one operation to be all different
        while (expr := _bare(rng, num_ops)) is None:
            pass
        return f"What is {infix(expr, divide='/')}?", expr, {"num_ops": num_ops, "phrasing": "known", "family": "bare"}
    family, distracts = base.draw(rng, FAMILY_WEIGHTS), rng.random() < DISTRACTOR_PROBABILITY
    while True:  # what was drawn above stays, so that redrawing does not shift the mix
        tell = _Teller(rng, NEW_PHRASING_PROBABILITY if target else 0.0)
        expr = FAMILIES[family](tell, num_ops)
        if expr is None or value(expr) is None or len(steps(expr)) != num_ops:
            continue
        if distracts:
            tell.distract()
        question = tell.text()
        if len(pieces(question)) <= MAX_QUESTION:
            phrasing = "new" if tell.num_new else "known"
            return question, expr, {"num_ops": num_ops, "phrasing": phrasing, "family": family}


# -------------------------------------------------------------------------------------------------------------- splits


def generate(split: str, num: int, *, seed: int, cot: str, annotations: str) -> tuple[Record, ...]:
    """The first `num` records of a split; a longer call begins with the shorter one's records.

    Questions depend on (split, seed) alone, not on `cot` or `annotations`; none occurs twice, nor in another split of
    any seed. `pretrain` is the corpus (kind "text", `cot` and `annotations` unused); test records have no reasoning.
    Raises InputError for unknown names.
    """
    for field, got, legal in (("split", split, SPLITS), ("cot", cot, COTS), ("annotations", annotations, ANNOTATIONS)):
        if got not in legal:
            raise InputError(f"data.{field}: {got!r} is unknown; one of {', '.join(legal)}")
    if num < 0:
        raise InputError(f"arithmetic: the number of {split} records is {num}; it must be 0 or more")
    if split == "train" and annotations == "corpus":
        others = ", ".join(ANNOTATIONS[:3])
        raise InputError(f"data.annotations: 'corpus' annotates the split 'pretrain'; for 'train' take one of {others}")
    seen, records = set(), []
    for index in range(num):
        rng = random.Random(f"{split}/{seed}/{index}")
        if split == "pretrain":
            record = _corpus_record(rng, seen, f"arithmetic_{split}_{index}")
        else:
            record = _record(rng, seen, index, split=split, seed=seed, cot=cot, annotations=annotations)
        seen.add(record.question)
        records.append(record)
    return tuple(records)


def belongs(question: str, split: str) -> bool:
    """Whether this split may hold the question (by a hash of its text)."""
    return zlib.crc32(question.encode()) % 8 in RESIDUES[split]


def _record(rng, seen, index, *, split, seed, cot, annotations):
    while True:
        question, expr, tags = problem(rng, split=split)
        if belongs(question, split) and question not in seen:
            break
    style, text = "", ""
    if split != "test":
        shown = "diverse" if annotations == "corpus" else annotations
        own = random.Random(f"{split}/{seed}/{index}/{cot}/{shown}")
        style, text = annotate(expr, own, cot=cot, annotations=shown)
    return Record(f"arithmetic_{split}_{index}", question, text, str(value(expr)), cot, tags | {"style": style})


def _corpus_record(rng, seen, item_id):
    style = base.draw(rng, STYLE_WEIGHTS["corpus"])
    sloppy = rng.random() < SLOPPY_PROBABILITY
    shown = base.draw(rng, STYLE_WEIGHTS["nl", "diverse"]) if style == "nl" else style
    while True:
        question, expr, tags = problem(rng, split="pretrain")
        if not belongs(question, "pretrain") or question in seen:
            continue
        path = rewrite(expr, rng)
        if sloppy and (path := spoil(path, rng)) is None:
            continue
        order = shuffled(steps(path), rng)
        if len(order) > MAX_STEPS:
            continue
        text = reasoning(shown, path, order)
        if style == "nl":
            text = f"{text}{ANSWER_SENTENCE} {value(path)}"
        if len(pieces(text)) <= MAX_RESPONSE["text"]:
            tags |= {"style": style, "sloppy": sloppy}
            return Record(item_id, question, text, str(value(expr)), "text", tags)


# ------------------------------------------------------------------------------------------------------------ the task


@dataclasses.dataclass(frozen=True)
class Task(base.Generated):
    def make(self, split: str, num: int, data) -> tuple[Record, ...]:
        corpus = split == "train" and data.annotations == "corpus"
        how = dict(seed=data.seed, cot=data.cot, annotations=data.annotations)
        return generate("pretrain" if corpus else split, num, **how)

    def words(self) -> tuple[str, tuple[str, ...]]:
        """(pattern, vocabulary) of the word-level tokenizer: what cuts a text, and every piece that can occur in one."""
        return PIECE, vocabulary()
