"""Reasons why reference genes are missing in a query: another spelling, or whole gene families."""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

GENOME = re.compile(r"^(grch\d+|grcm\d+|hg\d+|mm\d+)[_.-]+")  # prefix in references of two species
FAMILIES = {  # patterns of gene symbols, human or mouse
    "HLA": r"HLA-|H2-",
    "immunoglobulin": r"IG[HKL]([VDJ]\d.*|[ACDEGM](\d[A-C]?|P)?)$",
    "T-cell receptor": r"TR[ABDG]([VJ]\d.*|C\d?|D\d)$",
    "mitochondrial": r"MT-",
    "ribosomal": r"RP[LS]\d+[AXYL]{0,2}\d?$|RPLP\d$|RPSA$",
}
LEAST, NEARLY = 3, 0.9  # minimum family size; minimum fraction missing


def plain(name: str) -> str:
    """Normalise a gene name: without genome prefix and case, with `.` and `_` as `-`."""
    return re.sub(r"[._-]", "-", GENOME.sub("", str(name).casefold()))


def spelled_otherwise(missing: list[str], there: pd.Index) -> dict[str, str]:
    """Map `missing` reference names to the query's names (`there`) that differ only in spelling."""
    found = {plain(name): str(name) for name in there}
    return {name: found[plain(name)] for name in missing if plain(name) in found}


@dataclass(frozen=True)
class Family:
    """A gene family of which a query lacks (nearly) all genes.

    `n`: its number of genes in the reference; `missing`: symbols that the query lacks.
    """

    name: str
    n: int
    missing: list[str]


def families_missing(symbols: list[str], missing: np.ndarray) -> list[Family]:
    """Return gene families of which a query lacks (nearly) all genes.

    `missing` is a mask over the reference's `symbols`.
    """
    found, upper = [], [str(symbol).upper() for symbol in symbols]
    for name, pattern in FAMILIES.items():
        inside = np.array([bool(re.match(pattern, symbol)) for symbol in upper], bool)
        n, lost = int(inside.sum()), np.flatnonzero(inside & missing)
        if n >= LEAST and len(lost) >= NEARLY * n:
            found.append(Family(name, n, [symbols[k] for k in lost]))
    return found
