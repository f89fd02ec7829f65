"""Units of measure behind a number, in one spelling each, so that 5 ft and 5 feet are one answer and 5 m is another.

Per cent, degrees and currencies are among them. Other words ("12 ways", "5 apples") are no units: they are left out of a key.
"""

import functools
import re

from reft_jax.rewards.matchers import algebra, quantity

# spelling in keys: other spellings, in lower case; plurals with s are added where a word has four letters or more
_SPELLINGS = {
    "millimeter": "mm millimetre",
    "centimeter": "cm centimetre",
    "meter": "m metre",
    "kilometer": "km kilometre",
    "inch": "in inches",
    "foot": "ft feet",
    "yard": "yd yds",
    "mile": "mi",
    "milligram": "mg milligramme",
    "gram": "g gramme",
    "kilogram": "kg kilogramme",
    "ounce": "oz",
    "pound": "lb lbs",
    "ton": "tons",
    "tonne": "",
    "milliliter": "ml millilitre",
    "liter": "l litre",
    "gallon": "gal",
    "quart": "",
    "pint": "",
    "cup": "cups",
    "second": "s sec secs",
    "minute": "min mins",
    "hour": "h hr hrs",
    "day": "days",
    "week": "",
    "month": "",
    "year": "yr yrs",
    "degree": "",
    "radian": "rad",
    "celsius": "",
    "fahrenheit": "",
    "kelvin": "",
    "percent": "",
    "dollar": "usd",
    "cent": "",
    "euro": "",
    "sterling": "",
    "yen": "",
    "rupee": "",
}
_NAMES = {
    spelling: name
    for name, others in _SPELLINGS.items()
    for word in (name, *others.split())
    for spelling in (word, f"{word}s" if len(word) > 3 else word)
}
LETTERS = {name: word for word, name in _NAMES.items() if len(word) == 1}
_SPEEDS = {"mph": "mile/hour", "kph": "kilometer/hour", "kmph": "kilometer/hour"}
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cu": "^3", "cubed": "^3"}
SIGNS = {"$": "dollar", "€": "euro", "£": "sterling", "¥": "yen", "₹": "rupee"}

_UNIT = rf"(?:{'|'.join(sorted(_NAMES, key=len, reverse=True))})(?![A-Za-z])\.?"
_POWER = r"(?:\s*\^\s*\{?[23]\}?|\s+(?:squared|cubed)(?![A-Za-z]))?"
_PHRASE = re.compile(
    rf"(?:(?P<area>square|sq|cubic|cu)\.?\s+)?(?P<unit>{_UNIT})(?P<power>{_POWER})"
    rf"(?:\s*(?:/|per\s)\s*(?P<per>{_UNIT})(?P<per_power>{_POWER}))?",
    re.IGNORECASE,
)
# Behind a bare number a letter is a variable, and so may be two: 5 m is a length in \text{} alone, 5 cm everywhere.
_WORD = rf"(?:[A-Za-z]{{3,}}|(?:of|sq|cu|{'|'.join(name for name in _NAMES if len(name) == 2)})(?![A-Za-z]))\.?{_POWER}"
_AT_END = re.compile(
    rf"(?:(?<=[\d)}}])\s*(?<![\\A-Za-z])|(?<=\\pi)\s+|(?<=[A-Za-z])\s+(?=(?:{'|'.join(_SPELLINGS)})(?![A-Za-z])))"
    rf"(?P<words>{_WORD}(?:\s+{_WORD})*(?:\s*/\s*[A-Za-z]+{_POWER})?)$",
)
TEXT = r"\\(?:text|mathrm|textrm|mbox)\s*\{"  # its beginning
_END = r"(?=(?:[\s$.~}]|\\[)\]])*$)"
_GAP = r"(?:[\s~-]|\\[,;:! ])*"
_MULTIPLIER = re.compile(
    rf"(?<=[\d}}]){_GAP}(?P<text>{TEXT}\s*)?(?P<word>{'|'.join(quantity.MULTIPLIERS)}|(?:squared|cubed){_END})(?![A-Za-z])",
    re.IGNORECASE,
)
_MONEY = re.compile(
    rf"^(?P<amount>[\s(-]*(?:\\\$|\$(?=[^$]*$)|[€£¥₹])\s*-?(?:\d+(?:\.\d+)?|\.\d+)(?:\*\d+)*){_GAP}"
    rf"(?:(?:{TEXT}\s*)?(?P<letter>[kmbt]|tn)(?![A-Za-z])\s*\}}?)?{_END}",
    re.IGNORECASE,
)
_ACCOUNTED = re.compile(
    r"^\s*\(\s*((?:\\\$|\$(?=[^$]*$)|[€£¥₹])\s*[\d.]+(?:\*\d+)*\s*[kKmMbBtT]?)\s*\)\s*\.?\s*$"
)  # ($1,000)
_DEGREE = re.compile(
    rf"(?:\^\s*\{{?\s*\\circ\s*\}}?|\\(?:degrees?|circ)(?![A-Za-z]))\s*(?:{TEXT}\s*([CF])\s*\}}|([CF])(?![A-Za-z]))?(?P<end>{_END})?"
)
_PERCENT = re.compile(rf"\\?%(?P<end>{_END})?")
_UNIT_TEXT = re.compile(
    rf"(?<=[\w)}}]){_GAP}{TEXT}(?P<words>[^{{}}\d]*)\}}(?P<power>\s*\^\s*(?:[23]|\{{[23]\}}))?(?P<end>{_END})?"
)
_NO_UNITS = {*algebra.FUNCTIONS, *algebra.NAMES}


def split(text: str) -> tuple[str, str]:
    """(text without the words at its end, their unit or "" if they are none). Words that name another number stay where they are."""
    found = _AT_END.search(text)
    if found is None or re.match("[A-Za-z]+", found["words"])[0] in _NO_UNITS or not quantity.counts(found["words"]):
        return text, ""
    return text[: found.start()].strip(), name(found["words"])


@functools.lru_cache(maxsize=1024)
def name(words: str) -> str:
    """The one spelling of the unit that `words` begin with ("sq. cm" is centimeter^2, "feet tall" is foot), or ""."""
    words = words.strip().lower()
    found = _PHRASE.match(words)
    if found is None:
        return _SPEEDS.get(words.split(" ")[0].rstrip("."), "")
    power = _POWERS.get(found["area"]) or _power(found["power"])
    per = f"/{_NAMES[found['per'].rstrip('.')]}{_power(found['per_power'])}" if found["per"] else ""
    return _NAMES[found["unit"].rstrip(".")] + power + per


def _power(text: str) -> str:
    return _POWERS.get(text.strip()) or ("^" + re.sub(r"\D", "", text) if text else "")


def spell(text: str) -> str:
    """LaTeX with its units as words at its end and multipliers as products: "\\$5\\text{ million}" is "\\$5*1000000 dollar". Units elsewhere go."""
    for _ in range(3):  # "hundred thousand million"
        text = _MULTIPLIER.sub(_product, text)
    text = _ACCOUNTED.sub(r"-\1", text)
    if money := _MONEY.match(text):
        factor = quantity.MONEY_LETTERS[money["letter"].lower()] if money["letter"] else 1
        sign = next(sign for sign in money["amount"] if sign in SIGNS)
        text = f"{money['amount']}{f'*{factor}' if factor > 1 else ''} {SIGNS[sign]}"
    text = _DEGREE.sub(
        lambda found: _if_last(found, {"C": "celsius", "F": "fahrenheit"}.get(found[1] or found[2], "degree")), text
    )
    text = _PERCENT.sub(lambda found: _if_last(found, "percent"), text)
    return _UNIT_TEXT.sub(_words, text)


def _product(found: re.Match) -> str:
    word = found["word"].lower()
    sign = f"^{quantity.POWERS[word]}" if word in quantity.POWERS else f"*{quantity.MULTIPLIERS[word]}"
    return f"{sign} {found['text'] or ''}"


def _if_last(found: re.Match, unit: str) -> str:
    return " " if found["end"] is None else f" {unit}"


def _words(found: re.Match) -> str:
    """What stands for \\text{...} behind a number: its unit, nothing, or, if it names another number, itself."""
    if not quantity.counts(found["words"]):
        return found[0]
    unit = name(f"{found['words'].strip(' ~')}{found['power'] or ''}")
    return _if_last(found, unit) if unit else ""


def of_key(key: str) -> tuple[str, str]:
    """(key without its unit, the unit or "")."""
    value, _, unit = key.rpartition(" ")
    words = re.fullmatch("[A-Za-z' -]{3,}", value)  # "sunny day"
    return (value, unit) if value and not words and re.split("[/^]", unit)[0] in _SPELLINGS else (key, "")
