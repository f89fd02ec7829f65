"""Exact expressions in one canonical form: read from LaTeX or plain text, printed as text that reads as the same form again.

A value is a quotient of two sums of terms; a term is a rational coefficient times the root of a square-free whole number times
powers of atoms (x, pi, e, i, sin(x), ...). So 0.5 and \\frac12 are one form, and so are 1/\\sqrt3 and \\frac{\\sqrt{3}}{3}, (x+1)^2 and
x^2+2x+1, 1/(1+i) and (1-i)/2. Quotients of sums are not reduced and identities of functions are not known: that is left to sympy
(`math.py`). Nothing here evaluates text as code, and sizes are bounded: what is beyond them is `Unreadable`.
"""

import math
import re
from fractions import Fraction

MAX_DEPTH, MAX_TERMS, MAX_BITS, MAX_POWER = 40, 40, 700, 40
MAX_WORK = 4000  # products of terms for one text: some 10 ms
MAX_RADICAND = 10**12
MAX_FRACTION_DIGITS = 12  # significant digits of a decimal that count: 0.30000000000000004 is 0.3
MIN_DECIMALS = 4  # which count whatever stands before them
FUNCTIONS = "arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln exp sqrt abs factorial".split()
GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta lambda mu nu xi rho sigma tau phi varphi chi psi omega "
    "Gamma Delta Theta Lambda Sigma Phi Psi Omega"
).split()
NAMES = {"pi", "oo", *GREEK}  # words that are one atom; other atoms are single letters
WORD = re.compile(r"[A-Za-z]+")


class Unreadable(ValueError):
    """Not an expression, or too large a one."""


# ---- numbers and sums ------------------------------------------------------------------------------------------------

# A sum: {(root, ((atom, power), ...)): coefficient}, roots square-free and positive, atoms sorted, powers not 0.
ONE = (1, ())
Sum = dict


def _constant(value) -> Sum:
    return {ONE: Fraction(value)} if value else {}


def _tidy(terms: Sum) -> Sum:
    terms = {term: value for term, value in terms.items() if value}
    if len(terms) > MAX_TERMS or any(
        v.numerator.bit_length() > MAX_BITS or v.denominator.bit_length() > MAX_BITS for v in terms.values()
    ):
        raise Unreadable("too large")
    return terms


def _add_sums(a: Sum, b: Sum) -> Sum:
    out = dict(a)
    for term, value in b.items():
        out[term] = out.get(term, 0) + value
    return _tidy(out)


def _scale(a: Sum, factor: Fraction) -> Sum:
    return _tidy({term: value * factor for term, value in a.items()})


def _mul_terms(a, b):
    """(term, factor) of a product of two terms."""
    (r, left), (s, right) = a, b
    shared = math.gcd(r, s)
    factor, root = shared, r * s // (shared * shared)
    if root > MAX_RADICAND:
        raise Unreadable("too large")
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    if "i" in powers:
        turns = powers.pop("i") % 4
        factor = -factor if turns >= 2 else factor
        powers["i"] = turns % 2
    if any(abs(power) > MAX_POWER for power in powers.values()):
        raise Unreadable("too large")
    return (root, tuple(sorted((atom, power) for atom, power in powers.items() if power))), factor


def _mul_sums(a: Sum, b: Sum) -> Sum:
    out: Sum = {}
    for s, x in a.items():
        for t, y in b.items():
            term, factor = _mul_terms(s, t)
            out[term] = out.get(term, 0) + x * y * factor
    return _tidy(out)


# ---- values: quotients of sums -----------------------------------------------------------------------------------------


class Value:
    """numerator / denominator, the denominator being {ONE: 1} wherever it can be divided out. `work`: what it took to make it."""

    __slots__ = ("num", "den", "work")

    def __init__(self, num: Sum, den: Sum | None = None, work: int = 1):
        self.work = work
        den = {ONE: Fraction(1)} if den is None else den
        if not den:
            raise Unreadable("division by zero")
        if len(den) == 2 and all(atoms in ((), (("i", 1),)) for _, atoms in den):
            (s, x), (t, y) = den.items()  # (x s + y t)(x s - y t) has one term
            conjugate = {s: x, t: -y}
            num, den = _mul_sums(num, conjugate), _mul_sums(den, conjugate)
            if not den:
                raise Unreadable("division by zero")
        if len(den) == 1:
            ((root, atoms), value) = next(iter(den.items()))
            inverse = (root, tuple((atom, -power) for atom, power in atoms))
            num, den = _mul_sums(num, {inverse: 1 / (value * root)}), {ONE: Fraction(1)}
        else:
            first = den[min(den, key=_order)]
            num, den = _scale(num, 1 / first), _scale(den, 1 / first)
            if not num:
                den = {ONE: Fraction(1)}
            elif num.keys() == den.keys() and len({num[t] / den[t] for t in num}) == 1:
                num, den = _constant(num[min(num, key=_order)]), {ONE: Fraction(1)}
        self.num, self.den = num, den

    @property
    def rational(self) -> Fraction | None:
        """The value if it is a rational number."""
        if self.den != {ONE: 1} or self.num.keys() - {ONE}:
            return None
        return self.num.get(ONE, Fraction(0))

    @property
    def is_number(self) -> bool:
        """Whether it holds no variable."""
        return all(atom in ("pi", "e", "i") for part in (self.num, self.den) for _, atoms in part for atom, _ in atoms)


def number(value) -> Value:
    return Value(_constant(value))


def atom(name: str, power: int = 1) -> Value:
    return Value({(1, ((name, power),)): Fraction(1)})


def add(a: Value, b: Value) -> Value:
    if a.den == b.den:
        return Value(_add_sums(a.num, b.num), a.den)
    work = len(a.num) * len(b.den) + len(b.num) * len(a.den) + len(a.den) * len(b.den)
    return Value(_add_sums(_mul_sums(a.num, b.den), _mul_sums(b.num, a.den)), _mul_sums(a.den, b.den), work)


def negative(a: Value) -> Value:
    return Value(_scale(a.num, Fraction(-1)), a.den)


def mul(a: Value, b: Value) -> Value:
    work = len(a.num) * len(b.num) + len(a.den) * len(b.den)
    return Value(_mul_sums(a.num, b.num), _mul_sums(a.den, b.den), work)


def div(a: Value, b: Value) -> Value:
    work = len(a.num) * len(b.den) + len(a.den) * len(b.num)
    return Value(_mul_sums(a.num, b.den), _mul_sums(a.den, b.num), work)


def sqrt(a: Value) -> Value:
    value = a.rational
    if value is None:
        return atom(f"sqrt({show(a)})")
    if abs(value.numerator * value.denominator) > MAX_RADICAND:
        top, bottom = math.isqrt(abs(value.numerator)), math.isqrt(value.denominator)
        if top * top != abs(value.numerator) or bottom * bottom != value.denominator:
            raise Unreadable("too large")
        outside, root = Fraction(top, bottom), 1
    else:
        square, root = _square_part(abs(value.numerator) * value.denominator)
        outside = Fraction(square, value.denominator)
    out = Value(_tidy({(root, ()): outside}))
    return mul(out, atom("i")) if value < 0 else out


def _square_part(n: int) -> tuple[int, int]:
    """(s, r) with n = s * s * r and r square-free; n up to MAX_RADICAND."""
    square, root, d = 1, 1, 2
    while n and d * d * d <= n:
        if n % (d * d) == 0:
            square, n = square * d, n // (d * d)
        elif n % d == 0:
            root, n = root * d, n // d
        else:
            d += 1
    # What is left has at most two prime factors that are not small: the same one twice, or different ones.
    s = math.isqrt(n)
    if s * s == n:
        return square * s, root
    shared = math.gcd(root, n)
    return square * shared, root * n // (shared * shared)


def power(base: Value, exponent: Value) -> Value:
    n = exponent.rational
    if n is not None and n.denominator == 1 and abs(n) <= MAX_POWER:
        out, factor = number(1), base if n >= 0 else div(number(1), base)
        work = 1
        for _ in range(abs(int(n))):
            out = mul(out, factor)
            work += out.work
            if work > MAX_WORK:
                raise Unreadable("too large")
        out.work = work
        return out
    if n is not None and n.denominator == 1 and base.rational not in (0, 1, -1):
        raise Unreadable("too large")
    if n is not None and n.denominator == 2 and abs(n) <= MAX_POWER:
        return power(sqrt(base), number(n * 2))
    if n is not None and base.rational is not None and base.rational > 0 and abs(n) <= MAX_POWER and n.denominator < 20:
        top, bottom = (_root(part, n.denominator) for part in base.rational.as_integer_ratio())
        if top and bottom:
            return power(number(Fraction(top, bottom)), number(n.numerator))
    return atom(f"({show(base)})^({show(exponent)})")


def _root(n: int, k: int) -> int | None:
    """The whole k-th root of n >= 0, if there is one."""
    if n.bit_length() > 200:
        return None
    near = round(n ** (1 / k))
    return next((r for r in (near - 1, near, near + 1) if r >= 0 and r**k == n), None)


def call(name: str, argument: Value) -> Value:
    value = argument.rational
    if name == "sqrt":
        return sqrt(argument)
    if name == "abs" and value is not None:
        return number(abs(value))
    if name == "factorial" and value is not None and value.denominator == 1 and 0 <= value <= 20:
        return number(math.factorial(int(value)))
    return atom(f"{name}({show(argument)})")


# ---- printing ------------------------------------------------------------------------------------------------------------


def _order(term) -> tuple:
    root, atoms = term
    return -sum(power for _, power in atoms), atoms, root


def show(value: Value) -> str:
    """The canonical text; `read` makes the same value of it."""
    num = _show_sum(value.num)
    return num if value.den == {ONE: 1} else f"({num})/({_show_sum(value.den)})"


def _show_sum(terms: Sum) -> str:
    parts = [_show_term(term, terms[term]) for term in sorted(terms, key=_order)]
    out = "".join(part if part.startswith("-") else "+" + part for part in parts).removeprefix("+")
    if len(out) > 2000:
        raise Unreadable("too large")
    return out or "0"


def _show_term(term, value: Fraction) -> str:
    root, atoms = term
    above = [_show_power(name, power) for name, power in atoms if power > 0]
    below = [_show_power(name, -power) for name, power in atoms if power < 0]
    above = ([f"sqrt({root})"] if root > 1 else []) + above
    if abs(value.numerator) != 1 or not above:
        above.insert(0, str(abs(value.numerator)))
    if value.denominator != 1:
        below.insert(0, str(value.denominator))
    out = ("-" if value < 0 else "") + "*".join(above)
    if below:
        out += "/" + (below[0] if len(below) == 1 else f"({'*'.join(below)})")
    return out


def _show_power(name: str, power: int) -> str:
    if power == 1:
        return name
    # "(x)^(1/3)" is one atom
    return f"({name})^{power}" if name.startswith("(") else f"{name}^{power}"


# ---- reading -------------------------------------------------------------------------------------------------------------


def read(text: str) -> Value:
    """The value of an expression, LaTeX without its dressing (`boxed.undress`) or what `show` printed; Unreadable if it is none."""
    reader = _Reader(text)
    value = reader.sum(0)
    if reader.peek():
        raise Unreadable(text)
    return value


class _Reader:
    """Recursive descent over the characters of `text`."""

    _NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
    _COMMAND = re.compile(r"\\([A-Za-z]+)")
    _INDEX = re.compile(r"_(?:\{([A-Za-z0-9]{1,4})\}|([A-Za-z0-9]))")

    def __init__(self, text: str):
        self.text, self.at, self.work = text, 0, 0

    def spend(self, value: Value) -> Value:
        self.work += value.work
        if self.work > MAX_WORK:
            raise Unreadable("too large")
        return value

    def peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, expected: str):
        if self.peek() != expected:
            raise Unreadable(self.text)
        self.at += 1

    def match(self, pattern: re.Pattern):
        self.peek()
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def sum(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise Unreadable("too deep")
        value = self.product(depth)
        while self.peek() and self.peek() in "+-":
            sign = self.text[self.at]
            self.at += 1
            term = self.product(depth)
            value = self.spend(add(value, term if sign == "+" else negative(term)))
        return value

    def product(self, depth: int) -> Value:
        value = self.signed(depth)
        while True:
            if self.peek() and self.peek() in "*/":
                sign = self.text[self.at]
                self.at += 1
                other = self.signed(depth)
                value = self.spend(mul(value, other) if sign == "*" else div(value, other))
            elif self.starts_factor():
                value = self.spend(mul(value, self.powers(depth)))
            else:
                return value

    def starts_factor(self) -> bool:
        character = self.peek()
        # "5 3" is two numbers, not a product
        return character != "" and (character.isalpha() or character in "({\\")

    def signed(self, depth: int) -> Value:
        minus = False
        while self.peek() and self.peek() in "+-":
            minus ^= self.text[self.at] == "-"
            self.at += 1
        value = self.powers(depth)
        return negative(value) if minus else value

    def powers(self, depth: int) -> Value:
        value = self.primary(depth)
        while self.peek() and self.peek() in "!^":
            sign = self.text[self.at]
            self.at += 1
            value = self.spend(call("factorial", value) if sign == "!" else power(value, self.exponent(depth)))
        return value

    def exponent(self, depth: int) -> Value:
        if self.peek() == "-":
            self.at += 1
            return negative(self.exponent(depth + 1))
        if depth > MAX_DEPTH:
            raise Unreadable("too deep")
        # TeX would take one digit of a bare "12"; plain text and show() mean the whole of it.
        found = self.match(self._NUMBER)
        return number(_decimal(found[0])) if found else self.primary(depth + 1)

    def argument(self, depth: int) -> Value:
        """{...}, or one digit, letter or command, as TeX takes it."""
        if self.peek() == "{":
            return self.group("{", "}", depth)
        if self.peek().isdigit() and self.peek().isascii():
            self.at += 1
            return number(int(self.text[self.at - 1]))
        return self.primary(depth)

    def group(self, opening: str, closing: str, depth: int) -> Value:
        self.take(opening)
        value = self.sum(depth + 1)
        self.take(closing)
        return value

    def primary(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise Unreadable("too deep")
        character = self.peek()
        if character == "(":
            return self.group("(", ")", depth)
        if character == "{":
            return self.group("{", "}", depth)
        if character == "|":
            return call("abs", self.group("|", "|", depth))
        if found := self.match(self._NUMBER):
            return number(_decimal(found[0]))
        if character == "\\":
            return self.command(depth)
        if found := self.match(WORD):
            return self.word(found[0], found.start(), depth)
        raise Unreadable(self.text)

    def word(self, letters: str, start: int, depth: int) -> Value:
        name = next((n for n in (*FUNCTIONS, *NAMES) if letters == n), None)
        if letters == "log" and self.text[self.at : self.at + 1] == "_":
            return self.function("log", depth)
        if name in FUNCTIONS:
            if self.peek() != "(":
                raise Unreadable(letters)
            return call(name, self.group("(", ")", depth))
        if name is None and len(letters) > 2:
            raise Unreadable(letters)  # a word
        self.at = start + len(name or letters[0])
        return self.indexed(name or letters[0])

    def command(self, depth: int) -> Value:
        found = self.match(self._COMMAND)
        if not found:
            raise Unreadable(self.text)
        name = found[1]
        if name == "frac":
            top = self.argument(depth + 1)
            return self.spend(div(top, self.argument(depth + 1)))
        if name == "sqrt":
            if self.peek() != "[":
                return sqrt(self.argument(depth + 1))
            self.take("[")
            index = self.sum(depth + 1)
            self.take("]")
            return self.spend(power(self.argument(depth + 1), div(number(1), index)))
        if name == "infty":
            return atom("oo")
        if name in FUNCTIONS:
            return self.function(name, depth)
        if name in NAMES:
            return self.indexed(name)
        raise Unreadable(name)

    def function(self, name: str, depth: int) -> Value:
        if name == "log" and self.peek() == "_":
            self.at += 1
            base = self.argument(depth + 1)
            value = self.function("ln", depth)
            return div(value, call("ln", base))
        times = None
        if self.peek() == "^":
            self.at += 1
            times = self.exponent(depth)
        if self.peek() in ("(", "{"):
            value = call(name, self.primary(depth + 1))
        else:
            value = self.powers(depth + 1)  # sin 2x
            while self.starts_factor():
                value = self.spend(mul(value, self.powers(depth + 1)))
            value = call(name, value)
        return value if times is None else self.spend(power(value, times))

    def indexed(self, name: str) -> Value:
        found = self._INDEX.match(self.text, self.at)
        if found:
            self.at = found.end()
            index = found[1] or found[2]
            name += "_" + (index if len(index) == 1 else f"{{{index}}}")
        return atom(name)


def _decimal(text: str) -> Fraction:
    if len(text) > 200:
        raise Unreadable("too large")
    value = Fraction(text + "0" if text.endswith(".") else text)
    whole, _, decimals = text.lstrip("0").partition(".")
    leading = len(whole) or len(decimals.lstrip("0")) - len(
        decimals
    )  # digits before the first that counts, below 0 behind the point
    return round(value, max(MAX_FRACTION_DIGITS - leading, MIN_DECIMALS))
