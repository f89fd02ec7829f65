#!/usr/bin/env bash
# math_verify reads 1e3 as 1, 5e-2 as 5 and "12 hundred" as 12, so that a printed float, or a number with its word, is wrong for its own value and
# right for its mantissa; inside $...$ 1e3 is 1 x e x 3, e being Euler's number.
# A guess would be that the usual grader of mathematical answers takes what Python's str(1e16) prints, since it takes 1,000 and 10^3.
#
# Seen with math-verify 0.9.0, latex2sympy2-extended 1.11.0, sympy 1.14.0 (Python 3.11): verify(parse("1000"), parse("1e3")) is False and
# verify(parse("1"), parse("1e3")) True; parse("6.02e23") is 6.02, as gold too; parse("$1e3$") is 1*E*3 = 8.15; "5 million", "$5M" and
# "$5\text{ million}$" are 5, for which they are paid, and not for 5000000. "5!" is 5 and "$5!$" is 120. 1,000 and $10^3$ are right. Whoever
# grades floats that a program or a table printed writes them out first (f"{value:.12f}" or Fraction), and reads number words himself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check math-verify==0.9.0 latex2sympy2-extended==1.11.0 sympy==1.14.0 antlr4-python3-runtime==4.13.2
look='
from math_verify import parse, verify
pairs = [("1000", "1e3"), ("1", "1e3"), ("0.05", "5e-2"), ("5", "5e-2"), ("1200", "12 hundred"), ("12", "12 hundred"),
         ("5000000", r"$5\text{ million}$"), ("5", r"$5\text{ million}$"), ("5", "5!"), ("1000", "1,000"), ("1000", "$10^3$")]
print(*(int(verify(parse(gold), parse(said))) for gold, said in pairs))
print(parse("6.02e23")[0], parse("$1e3$")[0], parse("$5!$")[0])
'
seen=$("$python" -c "$look")
[ "$seen" = "0 1 0 1 0 1 0 1 1 1 1
6.02000000000000 1*E*3 factorial(5)" ] || { echo "now: $seen" >&2; exit 1; }
echo "as stated: 1e3 is 1, and 5 million is 5"
