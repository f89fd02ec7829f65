"""A number and the words around it: [brackets, sign, currency] number [multiplier] [what it counts], read from left to right.

`read("$1.5 million")` is 1500000, exactly. Words that multiply are read: hundred to trillion, dozen, lakh, crore, bn, mn, also k, K, M, B written at
the number ("5k") or behind an amount of money ("$5 M"), squared, cubed and "and a half". Other words are what is counted ("5 km", "5 m" and
"5 apples" are 5). None is what holds a second number, a variable or an operator ("5 or six", "2x", "5!", "5 plus tax", "5π"), and
what may multiply or not ("5 K", "5 mil", "3 score"). Words are English.
"""

import functools
import re
import unicodedata
from fractions import Fraction

MULTIPLIERS = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "doz": 12,
}
MULTIPLIERS |= {"lakh": 10**5, "crore": 10**7, "mn": 10**6, "mln": 10**6, "bn": 10**9, "bln": 10**9}
MULTIPLIERS |= {f"{name}s": factor for name, factor in MULTIPLIERS.items() if len(name) > 3}
POWERS = {"squared": 2, "cubed": 3}
MONEY_LETTERS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12, "tn": 10**12}  # behind money, in either case
LETTERS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}  # at a number; "5m" is metres, "5T" may be tesla
IDEOGRAMS = {"百": 100, "千": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
CURRENCY = r"(?:(?:US|CA|AU)?\\?\$|[€£¥₹])"

_NUMBER_WORDS = MULTIPLIERS.keys() | set(
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty "
    "thirty forty fifty sixty seventy eighty ninety half".split()
)
_OPERATORS = {"plus", "minus", "divided", "multiplied", "mod", "sqrt", "root", "factorial", "vs", "versus"}
_BEFORE_ONE = {"or", "and", "to", "times", "by", "over", "through"}
_IN_PASSING = set(
    "a an the these those this that first second last next other all both per each every my your his her its our their "
    "in for of after before with within during at on from into between across among until".split()
)  # words before a number that does not change the first one
_VARIABLES = {"x", "y", "z", "n"}
_UNIT_LETTERS = set("mgshlLNJVWACFΩ")
# Words behind a number that change it in ways not read here, or may do so.
_DOUBTFUL = set(
    "one once twice thrice double doubled triple tripled quadrupled halved halves tens score gross grand thou kilo mega mil mill mio mrd "
    "bil tril pi sin cos tan log ln exp choose power".split()
)
_PRODUCT = re.compile(r"[abcnxyz]{2,3}|(?:sin|cos|tan|log|ln|sqrt)\w*")  # 2xy, 5sinx
_FOREIGN = re.compile(
    r"(?:hundred|thousand|million)fold|mille|mila|(?:m|b|tr)il[lj]?i?(?:[oó]ne?|on[aeiu]n?|ones|oner|oen|ard|arden?|ardi|hão|hões)|тысяч.*|милли(?:он|ард).*"
)
_FRACTION = re.compile(
    r"(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|\w+teenth|\w+tieth|\w+dredth|\w+sandth|\w+lionth)(?P<many>s?)"
)

_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)"
_NUMBER = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{{1,3}}(?![\w.]))?"
_SIGN = rf"(?:(?P<sign>[-+]?)\s?(?P<money>{CURRENCY})?|(?P<before>{CURRENCY})\s?(?P<inner_sign>-))\s?"
_POWER = r"\s?(?:[x×*·]|\\times)\s?10\s?\^\s?[{(]?(?P<power>[+-]?\d{1,3})(?!\d)[)}]?"
_HEAD = re.compile(
    rf"(?P<opening>[\s<(\[{{\"'`*=]*){_SIGN}(?:(?P<whole>\d+)\s{{1,3}}(?=\d+\s?/))?"
    rf"(?P<num>{_NUMBER})(?:\s?/\s?(?P<den>{_NUMBER})|{_POWER})?(?![\d^+=:⁰¹²³⁴-⁹])",
    re.ASCII,
)
_AND_PART = re.compile(r"[\s-]+and[\s-]+an?[\s-]+(half|third|quarter)(?![a-z])", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_][-&][^\W\d_]{2,}|[^\W\d_]+(?:['’.][^\W\d_]+)*")
_FIRST = re.compile(rf"(?P<gap>[\s\-/({{\[,]*)(?P<word>{_WORD.pattern})")  # t-shirts and M&Ms are words

_TEXT = re.compile(r"\\(?:text|mathrm|textbf|textrm|mbox)\s*\{([^{}]*)\}")
_EMPHASIS = re.compile(r"(?<![\w*)])(\*{1,3})(?=[^\s*])([^*]*[^\s*])\1(?![\w*(])|\*{2,3}(?=\s*(?:[.,;:]|\n|$))")
_MARK = re.compile(r"<[/|]?[a-zA-Z_|]+>|\\[%$,; )\]]|\\\\$")
_UNIT_POWER = re.compile(
    r"(?<=[a-wyz])(?:\^-?\d(?!\d)|(?<!e)-?\d(?!\d)|⁻?[¹²³⁴-⁹])", re.IGNORECASE
)  # m2, s^-1; not 5x3
_SENTENCE_END = re.compile(r"\n|(?<!vs)[.?!](?=\s|$)")
_OPERATOR = re.compile(r"[+^=×·÷±∓√≤≥≈∞*\\⁰¹²³⁴-⁹⁺⁻]|[<>]|(?<=[\w)])!")


def ascii_of(character: str) -> str:
    """Digits, minus signs and fractions of other alphabets as 0-9, - and " 1/2"; any other character as it is."""
    if character in "−－–":
        return "-"
    decimal = unicodedata.decimal(character, None)
    if decimal is not None:
        return str(decimal)
    kind, _, parts = unicodedata.decomposition(character).partition(" ")
    if kind == "<fraction>" and not parts.endswith("2044"):  # "⅟" has no denominator
        return " " + "".join(chr(int(part, 16)) for part in parts.split()).replace("⁄", "/")
    return character


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Fraction | None:
    """The number that stands at the start of `text`, a few hundred characters at most, if no second one follows it."""
    text = text if text.isascii() else "".join(map(ascii_of, text)).strip()
    text = _EMPHASIS.sub(r"\2", _TEXT.sub(r" \1 ", text))
    head = _HEAD.match(text)
    value = _value(head) if head else None
    if value is None:
        return None
    rest = text[head.end() :]
    if "<" in head["opening"]:
        if ">" not in rest:
            return None
        rest = rest.replace(">", "", 1)
    money = bool(head["money"] or head["before"])
    plain = not (money or head["den"] or head["power"] or head["whole"] or head["sign"])
    if plain and (part := _AND_PART.match(rest)):
        value, rest = value + Fraction(1, {"half": 2, "third": 3, "quarter": 4}[part[1].lower()]), rest[part.end() :]
    value, rest = _multiplied(value, rest, money=money, plain=plain)
    if value is None or not counts(rest, money=money, one=value == 1):
        return None
    accounted = head["money"] and not head["sign"] and head["opening"].endswith("(") and rest.startswith(")")
    return -value if head["sign"] == "-" or head["inner_sign"] or accounted else value


def _value(head: re.Match) -> Fraction | None:
    value = Fraction(head["num"].replace(",", "")) * Fraction(10) ** int(head["power"] or 0)
    if head["den"] is not None:
        denominator = Fraction(head["den"].replace(",", ""))
        if denominator == 0:
            return None
        value /= denominator
    if head["whole"] is not None:
        if not 0 < value < 1:
            return None  # "5 6/2" is two numbers
        value += int(head["whole"])
    return value


def _multiplied(value: Fraction, rest: str, *, money: bool, plain: bool) -> tuple[Fraction | None, str]:
    """(value times the multipliers at the start of `rest`, what is left); None as the value where a power is not clear."""
    while (found := _FIRST.match(rest)) and not found["gap"].strip(" -"):
        word, end = found["word"], found.end()
        if not found["gap"] and word[1:2] == "-":  # 5K-per-month
            word, end = word[0], found.start("word") + 1
        if factor := MULTIPLIERS.get(word.lower()) or IDEOGRAMS.get(word[0]):
            end = end if word.lower() in MULTIPLIERS else found.start("word") + 1
        elif money and not found["gap"].strip(" "):
            factor = MONEY_LETTERS.get(word.lower())
        elif not found["gap"]:
            factor = LETTERS.get(word)
        if word.lower() in POWERS:
            clear = plain and not _FIRST.match(rest, end)  # -5 squared, 5 squared metres
            return (value ** POWERS[word.lower()] if clear else None), rest[end:]
        if factor is None:
            break
        value, rest, money = value * factor, rest[end:], False
    return value, rest


def counts(rest: str, *, money: bool = False, one: bool = True) -> bool:
    """Whether what follows a number says at most what it counts: no second number, variable or operator. `one`: the number may be 1."""
    rest = _MARK.sub(" ", _UNIT_POWER.sub("", rest))
    if re.search(r"\d", rest):
        return False
    sentence = (
        rest[: end.start()] if (end := _SENTENCE_END.search(rest)) and not rest.lstrip().startswith("!") else rest
    )
    if _OPERATOR.search(sentence.rstrip("*")) or re.match(r"\s*!", sentence):
        return False
    first = _FIRST.match(sentence)
    if first and not _may_follow(first["word"], first["gap"], last=first.end() == len(sentence), money=money, one=one):
        return False
    return _no_second_number(sentence)


def _may_follow(word: str, gap: str, *, last: bool, money: bool, one: bool) -> bool:
    """Whether the word right behind a number can be what it counts."""
    if money and not gap.strip(" ") and word.lower() in {*_UNIT_LETTERS, "mm"}:
        return False  # "$5 mm" may be millions
    if len(word) == 1 and word in "aA":
        return gap.isspace() and not last  # "$5 a day"
    if len(word) == 1 and unicodedata.category(word) != "Lo":  # a letter, not an ideogram
        return word in _UNIT_LETTERS
    if not gap and _PRODUCT.fullmatch(word):
        return False
    part = _FRACTION.fullmatch(word.lower())  # "2 thirds" and "1 third"; "29 third graders" are counted
    if part and (one or part["many"] or word.lower().endswith(("dredth", "sandth", "lionth"))):
        return False
    return word.lower() not in {*_DOUBTFUL, *POWERS} and not _FOREIGN.fullmatch(word.lower())


def _no_second_number(words: str) -> bool:
    """Whether words behind a number name no variable or operation, and other numbers only in passing ("in the two days", "$5 a dozen")."""
    said = [found[0] for found in _WORD.finditer(words)]
    if not _VARIABLES.isdisjoint(said) or not _OPERATORS.isdisjoint(map(str.lower, said)):
        return False
    said = [word.lower() for word in said]
    for place, word in enumerate(said):
        before = said[:place]
        while before[-1:] in (["a"], ["an"]) and len(before) > 1:
            before.pop()
        if word in _NUMBER_WORDS and (not _IN_PASSING.intersection(before[-1:]) or [*before, word] == ["a", "half"]):
            return False
        if word in _NUMBER_WORDS and (
            before[-2:] == ["out", "of"] or (said[place:] == [word] and before in (["in"], ["of"]))
        ):
            return False  # 5 out of ten, 5 in ten
        if word == "one" and _BEFORE_ONE.intersection(before[-1:]):
            return False
    said = said[said[:1] == ["raised"] :]
    return said[:2] != ["to", "the"] or not any(word == "power" or _FRACTION.fullmatch(word) for word in said[2:4])
