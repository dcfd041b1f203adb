"""Which cells an obs_filter keeps. A missing value equals nothing: it is != and `not in` all."""

import difflib
import operator
import unicodedata
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from atlasmap.data.filters import (
    NOTHING,
    NUMBER,
    TEXT,
    TRUTH,
    Column,
    Comparison,
    Condition,
    Constant,
    Joined,
    Missing,
    Opposite,
    parsed,
)

COMPARE = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
KINDS = {
    "string": TEXT, "empty": NOTHING, "boolean": TRUTH, "integer": NUMBER, "floating": NUMBER,
    "mixed-integer-float": NUMBER,
}  # fmt: skip


def kept(obs: pd.DataFrame, text: str) -> np.ndarray:
    """Mask of the cells (rows of `obs`) for which a filter holds.

    Raises ValueError for what is no filter, for columns that are not there, and for comparisons
    of values of different kinds, which would keep none or all.
    """
    try:
        return mask(parsed(text), obs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def mask(said: Condition, obs: pd.DataFrame) -> np.ndarray:
    """Where a condition holds; raises ValueError."""
    match said:
        case Joined(every, parts):
            join = np.logical_and if every else np.logical_or
            return join.reduce([mask(part, obs) for part in parts])
        case Opposite(part):
            return ~mask(part, obs)
        case Missing(column):
            return is_missing(values_of(column, obs).values)
        case Column():
            return truth(values_of(said, obs))
        case Comparison(left, how, right):
            return compared(values_of(left, obs), how, values_of(right, obs), len(obs))
    raise TypeError(f"no condition: {said}")


@dataclass(frozen=True)
class Values:
    """Of a column (an array of objects) or a constant; their kind; what the filter calls them."""

    values: np.ndarray | str | float | list
    kind: str
    said: str


def values_of(operand: Column | Constant, obs: pd.DataFrame) -> Values:
    """What is compared; raises ValueError."""
    if isinstance(operand, Constant):
        return Values(operand.value, operand.kind, operand.said)
    column = column_of(operand.name, obs)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    kind = KINDS.get(pd.api.types.infer_dtype(column, skipna=True), f"of type {column.dtype}")
    kind = NOTHING if column.isna().all() else kind
    return Values(column.to_numpy(object), kind, operand.name)


def column_of(name: str, obs: pd.DataFrame) -> pd.Series:
    """A column of obs; raises ValueError."""
    # Python reads names in a normal form: µ (micro) as μ (mu).
    same = [key for key in obs.columns if unicodedata.normalize("NFKC", str(key)) == name]
    if len(same) > 1:
        raise ValueError(f"{name} may be any of {', '.join(same)}, which look alike: rename one")
    if name in obs or same:
        return obs[name if name in obs else same[0]]
    near = difflib.get_close_matches(name, map(str, obs.columns), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"there is no column {name}{hint}")


def is_missing(values: np.ndarray) -> np.ndarray:
    """Which values are missing."""
    return np.asarray(pd.isna(values))


def truth(column: Values) -> np.ndarray:
    """A column that is itself true or false; what is missing is not true."""
    if column.kind not in (TRUTH, NOTHING):
        raise ValueError(f"column {column.said} is {column.kind}: compare it with something")
    return np.where(is_missing(column.values), False, column.values).astype(bool)


def check_kinds(left: Values, right: Values) -> None:
    """A text equals no number, and a filter that says so is a slip: ValueError."""
    kinds = {left.kind, right.kind} - {NOTHING}
    odd = kinds - {TEXT, NUMBER, TRUTH}
    if odd:
        raise ValueError(f"{left.said} is {odd.pop()}, which filters do not compare")
    if len(kinds) > 1 and kinds != {NUMBER, TRUTH}:
        hint = "; quote what is text" if kinds == {TEXT, NUMBER} else ""
        raise ValueError(
            f"{left.said} ({left.kind}) is compared with {right.said} ({right.kind}){hint}"
        )


def compared(left: Values, how: str, right: Values, n: int) -> np.ndarray:
    """A comparison, cell by cell (`n` of them)."""
    check_kinds(left, right)
    by_cell = partial(np.broadcast_to, shape=n)
    first = by_cell(np.asarray(left.values, object))
    if how in ("in", "not in"):
        return pd.Series(first).isin(right.values).to_numpy() == (how == "in")
    second = by_cell(np.asarray(right.values, object))
    known = ~is_missing(first) & ~is_missing(second)
    out = np.full(n, how == "!=")
    out[known] = COMPARE[how](first[known], second[known])
    return out
