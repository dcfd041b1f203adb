"""Parser of the sheet's obs_filter expressions, which are parsed and never executed.

The language: column names (also in `backticks`), numbers, quoted texts, lists of these; == != < <=
> >=, in, not in; and, or, not (also & | ~); parentheses; isna(column), notna(column),
column.isna(), column.notna(). Evaluation on obs is in masks.py. The workflow includes this file, so
it imports the standard library only.
"""

import ast
import re
from dataclasses import dataclass

LONGEST, MOST = 100_000, 1000  # limits: characters of a filter; names and comparisons in it
STAND_IN = "\N{MODIFIER LETTER GRAVE ACCENT}"  # begins the identifiers of names in backticks
COMPARISONS = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
TOKEN = re.compile(
    r"""(?P<triple>'''|\"\"\")|(?P<text>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`(?P<column>[^`]*)`"""
    rf"""|(?P<assign>(?<![=!<>])=(?!=))|(?P<and>&)|(?P<or>\|)|(?P<odd>[@#$;?\\`{STAND_IN}])""",
    re.DOTALL,
)
TEXT, NUMBER, TRUTH, NOTHING = "text", "number", "true/false", "missing"  # kinds of values


@dataclass(frozen=True)
class Column:
    """A column of obs; used as a condition, a boolean column."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A constant, or a list of constants of one kind; `said` is its source text in the filter."""

    value: str | float | bool | list
    kind: str
    said: str


@dataclass(frozen=True)
class Comparison:
    """A comparison; `how` is a value of COMPARISONS. For `in` and `not in`, `right` is a list."""

    left: Column | Constant
    how: str
    right: Column | Constant


@dataclass(frozen=True)
class Missing:
    """True where a column has no value."""

    column: Column


@dataclass(frozen=True)
class Opposite:
    """Negation of a condition (`part`: a Condition)."""

    part: object


@dataclass(frozen=True)
class Joined:
    """Conjunction (`every`) or disjunction of conditions (`parts`: Conditions)."""

    every: bool
    parts: list


Condition = Column | Comparison | Missing | Opposite | Joined


def parsed(text: str) -> Condition:
    """Parse a filter into a condition; raises ValueError that names what is not allowed."""
    if len(text) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST} characters")
    columns: dict[str, str] = {}  # identifier → name in backticks

    def plain(token: re.Match) -> str:
        if token["assign"]:
            raise ValueError("= compares nothing: write ==")
        if token["odd"] or token["triple"]:
            raise ValueError(f"{token[0]} has no meaning here")
        if token["column"] is not None:
            columns[name := f"{STAND_IN}{len(columns)}"] = token["column"]
            return f" {name} "
        return " and " if token["and"] else " or " if token["or"] else token[0]

    code = TOKEN.sub(plain, text).strip()
    if re.search(r"\0\s*\0", TOKEN.sub(lambda token: "\0" if token["text"] else token[0], text)):
        raise ValueError("two texts stand side by side: a comma is missing")
    try:
        tree = ast.parse(code, mode="eval").body
        said = Reader(columns).condition(tree)
    except SyntaxError as error:
        raise ValueError(f"it cannot be read ({error.msg})") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deeply") from error
    nodes = list(ast.walk(tree))
    if not any(isinstance(node, ast.Name) for node in nodes):
        raise ValueError("it names no column (quotes make a text of a name)")
    if sum(isinstance(node, ast.Name | ast.cmpop) for node in nodes) > MOST:
        raise ValueError(f"it compares more than {MOST} times: use `in` and a list")
    return said


class Reader:
    """Converts a Python syntax tree; `columns` maps identifiers to names in backticks."""

    def __init__(self, columns: dict[str, str]):
        self.columns = columns

    def condition(self, node: ast.expr) -> Condition:
        """Convert a boolean expression."""
        match node:
            case ast.BoolOp(how, parts):
                return Joined(isinstance(how, ast.And), [self.condition(part) for part in parts])
            case ast.UnaryOp(ast.Not() | ast.Invert(), part):
                return Opposite(self.condition(part))
            case ast.Compare(left, hows, rights):  # a < b < c means a < b and b < c
                lefts = [left, *rights]
                links = map(self.comparison, lefts, hows, rights)
                return Joined(True, list(links))
            case ast.Call(
                ast.Name("isna" | "notna" as name), [ast.Name() as column], []
            ) | ast.Call(ast.Attribute(ast.Name() as column, "isna" | "notna" as name), [], []):
                missing = Missing(self.column(column))
                return missing if name == "isna" else Opposite(missing)
            case ast.Name():
                return self.column(node)
            case ast.Constant():
                raise ValueError(f"{source(node)} is compared with nothing")
        raise refusal(node)

    def column(self, node: ast.Name) -> Column:
        """Return the column that a name refers to."""
        return Column(self.columns.get(node.id, node.id))

    def comparison(self, left: ast.expr, how: ast.cmpop, right: ast.expr) -> Comparison:
        """Convert a comparison of two operands, or a membership test."""
        if type(how) not in COMPARISONS:
            raise ValueError("`is` is no comparison here: write ==, or isna(column)")
        lists, wanted = ast.List | ast.Tuple, isinstance(how, ast.In | ast.NotIn)
        if isinstance(left, lists) or isinstance(right, lists) != wanted:
            raise ValueError("lists stand on the right of `in` and `not in`, and nothing else does")
        return Comparison(self.operand(left), COMPARISONS[type(how)], self.operand(right))

    def operand(self, node: ast.expr) -> Column | Constant:
        """Convert an operand: a column, a constant, or a list of constants."""
        if isinstance(node, ast.Name):
            return self.column(node)
        if not isinstance(node, ast.List | ast.Tuple):
            value = constant(node)
            return Constant(value, kind_of(value), source(node))
        values = [constant(item) for item in node.elts]
        kinds = {kind_of(value) for value in values} or {NOTHING}
        if len(kinds) > 1:
            raise ValueError(f"texts and numbers in one list: {source(node)}")
        return Constant(values, kinds.pop(), source(node))


def constant(node: ast.expr) -> str | float | bool:
    """Return the value of a literal: number, text, True or False."""
    match node:
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)) if value is not True:
            return -value
        case ast.Constant(str() | int() | float() as value):
            return value
    raise refusal(node)


def kind_of(value: str | float | bool) -> str:
    """Return the kind of a constant: TRUTH, TEXT or NUMBER."""
    return TRUTH if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER


def source(node: ast.AST) -> str:
    """Return the source text of a node (at most 60 characters), for an error message."""
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:60]}…"


def refusal(node: ast.AST) -> ValueError:
    """Return the error for a node that the language does not have."""
    what = {
        ast.Call: "a call", ast.Attribute: "an attribute", ast.BinOp: "arithmetic",
        ast.Subscript: "a place in a list", ast.JoinedStr: "an f-string",
        ast.Constant: "a constant",
    }.get(type(node), "an expression")  # fmt: skip
    hint = "; names with other characters than letters and digits go into `backticks`"
    hint = hint if isinstance(node, ast.BinOp) else ""
    return ValueError(f"{source(node)} is {what} that filters do not have{hint}")
