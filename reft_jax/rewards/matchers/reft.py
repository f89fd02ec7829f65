"""Matcher `reft`: what follows the last "Therefore, the answer is:", leniently read, as a number or a choice.

The key is a number rounded to 4 decimals without trailing zeros, or a lower-case letter; numbers agree within 1e-2 absolute (ReFT,
arXiv 2401.08967, section 3), so that 0 is right for a gold 0.01; `auto` and `math` have a relative tolerance.

What it reads as a number, at the start of what follows the trigger and with at most words after it: signs (also
"−", "－" and "–"), thousands separators (1,000 and 12,34,567), currency ($ \\$ US$ € £ ¥ ₹ before, "5 dollars" after; "($1,000)" is
-1000), units ("5 km", "5 m^2", "$5/hour"), per cent as it stands ("50%" is 50), "1.", ".5", 1e3, 1.5 x 10^3, fractions (3/4, ½),
mixed numbers (1 1/2, 1½, "1 and a half"), words that multiply ("5 million", "$5M", "5k", "3 dozen", "5 squared"), decimal digits of any
script, brackets, quotes, asterisks and "=" around it. What is none: number words ("twelve"), "about 5", two numbers ("5 or 6", "5 plus two",
"5:30"), a decimal comma ("3,5"), arithmetic ("5*3", "10^3", "10²", "5!", "5π"), variables ("2x", "5/x"), what may multiply or not ("5 K",
"5 M", "5 mil"), hex, "nan", "inf", what is longer than 200 characters. As a choice: b, B, (b), b), B., <b>, "b ) 27.675", "option b",
"choice: b".
"""

from reft_jax.rewards.matchers import sentence
from reft_jax.rewards.matchers.base import Matcher

MATCHER = Matcher(
    about='a number or a letter after "Therefore, the answer is:"; commas, currency, units and fractions are understood',
    kinds=("number", "choice"),
    find=sentence.find_with(sentence.bare),
    bare=sentence.bare,
    gold=sentence.bare,
    agree=sentence.agree,
)
