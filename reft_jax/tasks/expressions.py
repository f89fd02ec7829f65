"""Expression trees of the generated problems: their values, the other ways to compute them, their steps' orders, their mistakes.

An expression is an integer or `(op, left, right)`, and every intermediate result lies in 1..199. The same value can be reached
along many valid paths (ReFT, section 3.2); `rewrite` and `shuffled` draw one. Host side: no jax.
"""

import operator
import random

MIN_NUMBER, MAX_NUMBER = 2, 30  # numbers in a story
MAX_VALUE = 199  # every intermediate result lies in 1..MAX_VALUE

REWRITE_PROBABILITY = 0.5
SWAP_PROBABILITY = 0.25

OPS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
Expr = int | tuple  # an integer or (op, left, right) with op one of + - * /; "/" is always exact


def value(expr: Expr) -> int | None:
    """The value of `expr`; None where a result is outside 1..199 or a division is not exact."""
    if isinstance(expr, int):
        return expr
    op, left, right = expr[0], value(expr[1]), value(expr[2])
    if left is None or right is None or op == "/" and left % right:
        return None
    result = OPS[op](left, right)
    return result if 1 <= result <= MAX_VALUE else None


def steps(expr: Expr) -> list[tuple]:
    """The distinct operations of `expr`, each after those it uses; a shared sub-expression is one step."""
    found = {}

    def visit(node):
        if not isinstance(node, int) and node not in found:
            visit(node[1])
            visit(node[2])
            found[node] = None

    visit(expr)
    return list(found)


def _op(expr: Expr) -> str:
    return "" if isinstance(expr, int) else expr[0]


def alternatives(expr: tuple) -> list[tuple]:
    """Other ways to compute the root of `expr`, all with results in 1..199."""
    op, left, right = expr
    found = []
    if op in "+-" and _op(left) in ("+", "-"):
        inner, x, a = left
        found.append((inner, (op, x, right), a))  # (x + a) - b -> (x - b) + a
        if inner == op:
            found.append((op, x, ("+", a, right)))  # (x - a) - b -> x - (a + b)
        else:
            plus, minus = (a, right) if inner == "+" else (right, a)
            found += [("+", x, ("-", plus, minus)), ("-", x, ("-", minus, plus))]  # one of them has a negative step
    if op in "+-" and _op(right) in ("+", "-"):
        inner, y, z = right
        found.append((inner if op == "+" else "+-"[inner == "+"], (op, left, y), z))  # x - (y - z) -> (x - y) + z
    if op == "+" and _op(left) == _op(right) == "*" and left[2] == right[2]:
        found.append(("*", ("+", left[1], right[1]), left[2]))
    if op == "*" and _op(left) in ("+", "-") and isinstance(right, int):
        found.append((left[0], ("*", left[1], right), ("*", left[2], right)))
    if op == "*" and _op(right) in ("+", "-") and isinstance(left, int):
        found.append((right[0], ("*", left, right[1]), ("*", left, right[2])))
    if op == "*" and right == 2:
        found.append(("+", left, left))
    if op == "/" and _op(left) in ("+", "-") and isinstance(right, int):
        found.append((left[0], ("/", left[1], right), ("/", left[2], right)))
    if op == "/" and _op(left) == "*":
        found.append(("*", ("/", left[1], right), left[2]))
    return [other for other in found if value(other) is not None]


def rewrite(expr: Expr, rng: random.Random) -> Expr:
    """A random valid decomposition: at each node an alternative with probability .5, then operands swapped at .25."""
    return _swap(_decompose(expr, rng, {}), rng, {})


def _decompose(expr, rng, done):
    if isinstance(expr, int):
        return expr
    if expr not in done:  # a shared sub-expression is rewritten once, so it stays one step
        node = (expr[0], _decompose(expr[1], rng, done), _decompose(expr[2], rng, done))
        if rng.random() < REWRITE_PROBABILITY and (others := alternatives(node)):
            node = rng.choice(others)
        done[expr] = node
    return done[expr]


def _swap(expr, rng, done):
    if isinstance(expr, int):
        return expr
    if expr not in done:
        op, left, right = expr[0], _swap(expr[1], rng, done), _swap(expr[2], rng, done)
        swap = op in "+*" and rng.random() < SWAP_PROBABILITY
        done[expr] = (op, right, left) if swap else (op, left, right)
    return done[expr]


def shuffled(nodes: list[tuple], rng: random.Random) -> list[tuple]:
    """A random topological order of `steps(expr)`."""
    rest, order = list(nodes), []
    while rest:
        ready = [node for node in rest if node[1] not in rest and node[2] not in rest]
        order.append(rng.choice(ready))
        rest.remove(order[-1])
    return order


def spoil(expr: tuple, rng: random.Random) -> tuple | None:
    """`expr` with one wrong operation, one wrong number or one step left out; None if that hits the right value."""
    target = rng.choice(steps(expr))
    op, left, right = target
    how = rng.choice(("operation", "number", "skip"))
    if how == "operation":
        other = (rng.choice([o for o in "+-*" if o != op]), left, right)
    elif how == "number":
        sides = [side for side in (1, 2) if isinstance(target[side], int)]
        if not sides:
            return None
        number, side = rng.randint(MIN_NUMBER, MAX_NUMBER), rng.choice(sides)
        other = (*target[:side], number, *target[side + 1 :])
    else:
        other = rng.choice((left, right))
    spoiled = _replace(expr, target, other)
    result = value(spoiled)
    return None if isinstance(spoiled, int) or result is None or result == value(expr) else spoiled


def _replace(expr, old, new):
    if expr == old:
        return new
    if isinstance(expr, int):
        return expr
    return (expr[0], _replace(expr[1], old, new), _replace(expr[2], old, new))
