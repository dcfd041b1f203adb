"""Evaluate an obs_filter on obs.

A missing value is unequal to every value: `!=` and `not in` hold for it, other comparisons do not.
"""

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

    Raises ValueError for an invalid filter, for unknown columns, and for comparisons of values of
    different kinds, which would keep no cells or all.
    """
    try:
        return mask(parsed(text), obs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def mask(said: Condition, obs: pd.DataFrame) -> np.ndarray:
    """Mask of the cells for which a condition holds; raises ValueError."""
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
    """Values of a column (object array) or a constant, their kind, and their text in the filter."""

    values: np.ndarray | str | float | list
    kind: str
    said: str


def values_of(operand: Column | Constant, obs: pd.DataFrame) -> Values:
    """Return the values of an operand; raises ValueError."""
    if isinstance(operand, Constant):
        return Values(operand.value, operand.kind, operand.said)
    column = column_of(operand.name, obs)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    kind = KINDS.get(pd.api.types.infer_dtype(column, skipna=True), f"of type {column.dtype}")
    kind = NOTHING if column.isna().all() else kind
    return Values(column.to_numpy(object), kind, operand.name)


def column_of(name: str, obs: pd.DataFrame) -> pd.Series:
    """Return a column of obs; raises ValueError if it is unknown or ambiguous."""
    # Python normalises identifiers to NFKC, e.g. µ (micro) to μ (mu).
    same = [key for key in obs.columns if unicodedata.normalize("NFKC", str(key)) == name]
    if len(same) > 1:
        raise ValueError(f"{name} may be any of {', '.join(same)}, which look alike: rename one")
    if name in obs or same:
        return obs[name if name in obs else same[0]]
    near = difflib.get_close_matches(name, map(str, obs.columns), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"there is no column {name}{hint}")


def is_missing(values: np.ndarray) -> np.ndarray:
    """Mask of missing values."""
    return np.asarray(pd.isna(values))


def truth(column: Values) -> np.ndarray:
    """Return a boolean column as a mask, missing values as false; raises ValueError."""
    if column.kind not in (TRUTH, NOTHING):
        raise ValueError(f"column {column.said} is {column.kind}: compare it with something")
    return np.where(is_missing(column.values), False, column.values).astype(bool)


def check_kinds(left: Values, right: Values) -> None:
    """Raise ValueError if values of different kinds, such as text and number, are compared."""
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
    """Evaluate a comparison for each of the `n` cells (mask); raises ValueError."""
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
