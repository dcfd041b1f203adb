"""Why genes of the reference are not found in a query: spelled otherwise, or not there, as single
genes or as whole families."""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

GENOME = re.compile(r"^(grch\d+|grcm\d+|hg\d+|mm\d+)[_.-]+")  # as references of two species have it
FAMILIES = {  # of symbols, human or mouse
    "HLA": r"HLA-|H2-",
    "immunoglobulin": r"IG[HKL]([VDJ]\d.*|[ACDEGM](\d[A-C]?|P)?)$",
    "T-cell receptor": r"TR[ABDG]([VJ]\d.*|C\d?|D\d)$",
    "mitochondrial": r"MT-",
    "ribosomal": r"RP[LS]\d+[AXYL]{0,2}\d?$|RPLP\d$|RPSA$",
}
LEAST, NEARLY = 3, 0.9  # genes of a family in the reference, and the fraction missing that is said


def plain(name: str) -> str:
    """A name without what tools change in it: genome before it, case, kind of hyphen."""
    return re.sub(r"[._-]", "-", GENOME.sub("", str(name).casefold()))


def spelled_otherwise(missing: list[str], there: pd.Index) -> dict[str, str]:
    """Of missing names those that are there in another spelling: the reference's → the query's."""
    found = {plain(name): str(name) for name in there}
    return {name: found[plain(name)] for name in missing if plain(name) in found}


@dataclass(frozen=True)
class Family:
    """A family of genes of which a query lacks (nearly) all that the reference has."""

    name: str
    n: int
    missing: list[str]


def families_missing(symbols: list[str], missing: np.ndarray) -> list[Family]:
    """Families of which a query lacks (nearly) all genes (`missing`: mask over the `symbols`)."""
    found, upper = [], [str(symbol).upper() for symbol in symbols]
    for name, pattern in FAMILIES.items():
        inside = np.array([bool(re.match(pattern, symbol)) for symbol in upper], bool)
        n, lost = int(inside.sum()), np.flatnonzero(inside & missing)
        if n >= LEAST and len(lost) >= NEARLY * n:
            found.append(Family(name, n, [symbols[k] for k in lost]))
    return found
