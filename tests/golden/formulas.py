"""Pictures from the text of a formula: `picture("m=(x//7)%2; r=40*m, g=x, b=(x*y)^2%256", 64, 48)`.

Only arithmetic on the column `x`, the row `y`, the width `w`, the height `h` and earlier names is evaluated, on int64
arrays. `^` before a number is a power, as the formulas are written for people; elsewhere it is the exclusive or.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import numpy as np
from PIL import Image

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
CALLS: dict[str, Callable[..., Any]] = {
    "max": lambda *values: reduce(np.maximum, values),
    "min": lambda *values: reduce(np.minimum, values),
    "abs": np.abs,
    "sqrt": np.sqrt,
    "isqrt": lambda value: np.floor(np.sqrt(value)).astype(np.int64),
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "round": np.rint,
    "int": lambda value: np.asarray(value).astype(np.int64),
    "xor": np.bitwise_xor,
    "where": np.where,
    "clip": np.clip,
}


class FormulaError(ValueError):
    """A formula that holds something else than arithmetic: names it."""


def statements(text: str) -> Iterator[str]:
    """The assignments of a formula: split at `;`, line ends and commas outside brackets."""
    depth, start = 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter in ";\n" or (letter == "," and depth == 0):
            yield text[start:i].strip()
            start = i + 1
    yield text[start:].strip()


def value_of(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of an expression."""
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as value):
            return np.int64(value) if isinstance(value, int) else np.float64(value)
        case ast.Name(id=name):
            if name in names:
                return names[name]
            raise FormulaError(f"{name!r} is not defined; known: {', '.join(names)}")
        case ast.BinOp(left, op, right) if type(op) in BINARY:
            return BINARY[type(op)](value_of(left, names), value_of(right, names))
        case ast.UnaryOp(op, operand) if type(op) in UNARY:
            return UNARY[type(op)](value_of(operand, names))
        case ast.Compare(left, [op], [right]) if type(op) in COMPARE:
            return np.asarray(COMPARE[type(op)](value_of(left, names), value_of(right, names))).astype(np.int64)
        case ast.IfExp(test, body, orelse):
            return np.where(value_of(test, names), value_of(body, names), value_of(orelse, names))
        case ast.Call(ast.Name(id=name), args, []) if name in CALLS:
            return CALLS[name](*(value_of(arg, names) for arg in args))
    raise FormulaError(f"{ast.unparse(node)!r} is no arithmetic that a picture formula may hold")


def picture(formula: str, width: int, height: int) -> Image.Image:
    """The RGB image of a formula that assigns `r`, `g` and `b`; values wrap at 256.

    Raises:
        FormulaError: no assignment, an unknown name, or anything but arithmetic.
    """
    y, x = np.mgrid[:height, :width].astype(np.int64)
    names: dict[str, Any] = {"x": x, "y": y, "w": np.int64(width), "h": np.int64(height)}
    for text in filter(None, statements(re.sub(r"\^(?=\s*\d)", "**", formula))):
        try:
            parsed = ast.parse(text).body
        except SyntaxError as error:
            raise FormulaError(f"{text!r} in {formula!r}: {error.msg}") from error
        if len(parsed) != 1 or not isinstance(parsed[0], ast.Assign):
            raise FormulaError(f"{text!r} in {formula!r} is no assignment")
        value = value_of(parsed[0].value, names)
        for target in parsed[0].targets:
            if not isinstance(target, ast.Name):
                raise FormulaError(f"{text!r} in {formula!r} assigns to something else than a name")
            names[target.id] = value
    if missing := {"r", "g", "b"} - names.keys():
        raise FormulaError(f"{formula!r} does not assign {', '.join(sorted(missing))}")
    channels = [np.broadcast_to(np.asarray(names[c]), (height, width)) for c in "rgb"]
    return Image.fromarray(np.stack(channels, -1).astype(np.int64).astype(np.uint8))
