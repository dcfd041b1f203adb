"""The sheet's obs_filter: a small closed language over columns of obs. Nothing in it is run.

Column names (also in `backticks`), numbers, quoted texts, lists of these; == != < <= > >=, in,
not in, and or not (also & | ~), parentheses; isna(column), notna(column), column.isna(),
column.notna(). A missing value equals nothing: it is != and `not in` everything.
"""

import ast
import difflib
import operator
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

LONGEST, MOST_NAMES = 100_000, 1000  # characters of a filter, and names of columns in it
STAND_IN = "\N{MODIFIER LETTER GRAVE ACCENT}"  # begins what Python reads for a name in backticks
COMPARISONS = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
TOKEN = re.compile(
    r"""(?P<text>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`(?P<column>[^`]*)`"""
    rf"""|(?P<assign>(?<![=!<>])=(?!=))|(?P<and>&)|(?P<or>\|)|(?P<odd>[@#$;?\\`{STAND_IN}])""",
    re.DOTALL,
)

Mask = Callable[[pd.DataFrame], np.ndarray]  # of cells


@dataclass(frozen=True)
class Operand:
    """Values to compare (a column, a constant or a list of constants): `kind` is text, number,
    true/false, or missing where there is none; `said` how the filter calls them."""

    kind: str
    values: np.ndarray | str | float | list
    said: str


def parsed(text: str) -> Mask:
    """The filter as a function from obs (cells × columns) to a mask of cells; raises ValueError
    that says what is no part of the language. The function raises ValueError where obs lacks a
    column, or where it holds another kind of value."""
    if len(text) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST} characters")
    columns: dict[str, str] = {}  # stand-ins for names in backticks

    def plain(token: re.Match) -> str:
        if token["assign"]:
            raise ValueError("= compares nothing: write ==")
        if token["odd"]:
            raise ValueError(f"{token['odd']} has no meaning here")
        if token["column"] is not None:
            columns[name := f"{STAND_IN}{len(columns)}"] = token["column"]
            return f" {name} "
        return " and " if token["and"] else " or " if token["or"] else token[0]

    try:
        tree = ast.parse(TOKEN.sub(plain, text).strip(), mode="eval").body
        filtering = Reader(columns).condition(tree)
    except SyntaxError as error:
        raise ValueError(f"it cannot be read ({error.msg})") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deeply") from error
    n_names = sum(isinstance(node, ast.Name) for node in ast.walk(tree))
    if n_names == 0:
        raise ValueError("it names no column (quotes make a text of a name)")
    if n_names > MOST_NAMES:
        raise ValueError(f"it names columns more than {MOST_NAMES} times: use `in` and a list")
    return filtering


def source(node: ast.AST) -> str:
    """A part of a filter, for an error message."""
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:60]}…"


class Reader:
    """Reads a syntax tree; `columns` says which names stand for names in backticks."""

    def __init__(self, columns: dict[str, str]):
        self.columns = columns

    def condition(self, node: ast.expr) -> Mask:
        """What is true or false of each cell."""
        match node:
            case ast.BoolOp(ast.And(), parts):
                every = [self.condition(part) for part in parts]
                return lambda obs: np.logical_and.reduce([part(obs) for part in every])
            case ast.BoolOp(ast.Or(), parts):
                some = [self.condition(part) for part in parts]
                return lambda obs: np.logical_or.reduce([part(obs) for part in some])
            case ast.UnaryOp(ast.Not() | ast.Invert(), inner):
                opposite = self.condition(inner)
                return lambda obs: ~opposite(obs)
            case ast.Compare():
                return self.comparisons(node)
            case ast.Call(ast.Name("isna" | "notna" as name), [ast.Name() as column], []):
                return self.missing(column, name == "isna")
            case ast.Call(ast.Attribute(ast.Name() as column, "isna" | "notna" as name), [], []):
                return self.missing(column, name == "isna")
            case ast.Name():
                name = self.name(node)
                return lambda obs: truth(column_of(obs, name))
            case ast.Constant():
                raise ValueError(f"{source(node)} is compared with nothing")
        raise refusal(node)

    def name(self, node: ast.Name) -> str:
        """The column that a name means."""
        return self.columns.get(node.id, node.id)

    def missing(self, node: ast.Name, wanted: bool) -> Mask:
        """Whether a column's value is missing."""
        name = self.name(node)
        return lambda obs: is_missing(column_of(obs, name).values) == wanted

    def comparisons(self, node: ast.Compare) -> Mask:
        """A chain a < b < c holds where each of its comparisons does."""
        sides = [node.left, *node.comparators]
        links = [
            self.comparison(left, how, right)
            for left, how, right in zip(sides, node.ops, node.comparators, strict=False)
        ]
        return lambda obs: np.logical_and.reduce([link(obs) for link in links])

    def comparison(self, left: ast.expr, how: ast.cmpop, right: ast.expr) -> Mask:
        """One comparison of two operands, or whether a list holds a column's value."""
        is_in = isinstance(how, ast.In | ast.NotIn)
        if not is_in and type(how) not in COMPARISONS:
            raise ValueError("`is` is no comparison here: write ==, or isna(column)")
        if isinstance(left, ast.List | ast.Tuple) or is_in != isinstance(
            right, ast.List | ast.Tuple
        ):
            raise ValueError("lists stand on the right of `in` and `not in`, and nothing else does")
        first, second = self.operand(left), self.operand(right)
        if is_in:
            wanted = isinstance(how, ast.In)
            return lambda obs: contained(first(obs), second(obs), len(obs)) == wanted
        compare = COMPARISONS[type(how)]
        return lambda obs: compared(first(obs), second(obs), compare, len(obs))

    def operand(self, node: ast.expr) -> Callable[[pd.DataFrame], Operand]:
        """A column, or constants."""
        if isinstance(node, ast.Name):
            name = self.name(node)
            return lambda obs: column_of(obs, name)
        if isinstance(node, ast.List | ast.Tuple):
            values = [constant(item) for item in node.elts]
            kinds = {kind_of(value) for value in values} or {"missing"}
            if len(kinds) > 1:
                raise ValueError(f"texts and numbers in one list: {source(node)}")
            told = Operand(kinds.pop(), values, source(node))
        else:
            value = constant(node)
            told = Operand(kind_of(value), value, source(node))
        return lambda obs: told


def constant(node: ast.expr) -> str | float | bool:
    """A number, a text, True or False."""
    match node:
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)) if value is not True:
            return -value
        case ast.Constant(str() | int() | float() as value):
            return value
    raise refusal(node)


def refusal(node: ast.AST) -> ValueError:
    """That something is no part of the language."""
    what = {
        ast.Call: "a call", ast.Attribute: "an attribute", ast.BinOp: "arithmetic",
        ast.Subscript: "a place in a list", ast.JoinedStr: "an f-string",
        ast.Constant: "a constant",
    }.get(type(node), "an expression")  # fmt: skip
    hint = ""
    if isinstance(node, ast.BinOp):
        hint = (
            "; names of columns with other characters than letters and digits go into `backticks`"
        )
    return ValueError(f"{source(node)} is {what} that filters do not have{hint}")


def kind_of(value: str | float | bool) -> str:
    """The kind of a constant."""
    return (
        "true/false" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
    )


KINDS = {
    "string": "text", "empty": "missing", "boolean": "true/false", "integer": "number",
    "floating": "number", "mixed-integer-float": "number",
}  # fmt: skip


def column_of(obs: pd.DataFrame, name: str) -> Operand:
    """A column of obs."""
    # Python reads names in a normal form: µ (micro) as μ (mu).
    same = [key for key in obs.columns if unicodedata.normalize("NFKC", str(key)) == name]
    if name not in obs and len(same) == 1:
        name = same[0]
    if name not in obs:
        near = difflib.get_close_matches(name, map(str, obs.columns), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no column {name}{hint}")
    values = obs[name]
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    kind = KINDS.get(pd.api.types.infer_dtype(values, skipna=True))
    if kind is None or values.isna().all():
        kind = "missing" if values.isna().all() else f"of type {values.dtype}"
    return Operand(kind, values.to_numpy(object), name)


def is_missing(values: np.ndarray) -> np.ndarray:
    """Which values are missing."""
    return np.asarray(pd.isna(values))


def truth(column: Operand) -> np.ndarray:
    """A column that is itself true or false; what is missing is not true."""
    if column.kind not in ("true/false", "missing"):
        raise ValueError(f"column {column.said} is {column.kind}: compare it with something")
    return np.where(is_missing(column.values), False, column.values).astype(bool)


def check_kinds(first: Operand, second: Operand) -> None:
    """A text equals no number, and a filter that says so is a slip: ValueError."""
    kinds = {first.kind, second.kind} - {"missing"}
    if len(kinds) > 1 and kinds != {"number", "true/false"}:
        hint = "; quote what is text" if kinds == {"text", "number"} else ""
        raise ValueError(
            f"{first.said} ({first.kind}) is compared with {second.said} ({second.kind}){hint}"
        )
    odd = kinds - set(KINDS.values())
    if odd:
        raise ValueError(f"{first.said} is {odd.pop()}, which filters do not compare")


def compared(first: Operand, second: Operand, compare: Callable, n: int) -> np.ndarray:
    """A comparison, cell by cell (`n` of them)."""
    check_kinds(first, second)
    sides = [np.broadcast_to(np.asarray(side.values, object), n) for side in (first, second)]
    known = ~is_missing(sides[0]) & ~is_missing(sides[1])
    out = np.full(n, compare is operator.ne)
    out[known] = compare(*(side[known] for side in sides))
    return out


def contained(first: Operand, second: Operand, n: int) -> np.ndarray:
    """Whether the list `second` holds each value of `first`."""
    check_kinds(first, second)
    values = np.broadcast_to(np.asarray(first.values, object), n)
    return pd.Series(values).isin(second.values).to_numpy()


def kept(obs: pd.DataFrame, text: str) -> np.ndarray:
    """Mask of the cells (rows of `obs`) for which a filter holds; raises ValueError."""
    try:
        return parsed(text)(obs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
