"""Gather comparisons with scvi-tools into tests/parity/REPORT.md (`make parity`).

python tests/parity/write_report.py results/cell_lines_atlas results/simulated_atlas

Sections of atlases that are not given stay as they are.
"""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from atlasmap.parity.pairs import FEW, as_markdown, summary

REPORT = Path(__file__).with_name("REPORT.md")
HEAD = """# atlasmap and scvi-tools, pair by pair

Made by `make parity`. Both are trained on the same cells with the same split (scvi-tools' own
permutation, checked against the indices that it keeps), settings and seeds, and score the same
cells. scvi-tools {scvi}, torch {torch}, on a CPU.

- **elbo**, **reconstruction_loss**: of validation cells at the end of training: eval mode, one
  sample of z, KL not weighted. Of surgery: of the query's validation cells. Of totalVI: each where
  its own ELBO is best.
- **accuracy**, **macro_f1**, **ece** (15 bins, l1): of the classifier on the reference's validation
  cells, or after surgery on all query cells whose true label the reference has.
- A pair is a seed. ELBO: every pair within 1 %; from {few} validation cells on anything else is an
  error. The rest: means within two standard errors of their difference (unpaired, over {n_seeds}
  seeds: so few that one in nine would miss by chance alone).
"""


def old() -> str:
    """The report as it is."""
    return REPORT.read_text(encoding="utf-8") if REPORT.is_file() else ""


def main(folders: list[Path]) -> int:
    """Write the report of results/{atlas}/parity/pairs.csv of each folder; 1 if an ELBO is off."""
    tables = {f.name: pd.read_csv(f / "parity/pairs.csv", keep_default_na=False) for f in folders}
    n_seeds = max(table["seed"].nunique() for table in tables.values())
    off = 0
    versions = {"scvi": version("scvi-tools"), "torch": version("torch")}
    sections = dict(re.findall(r"^## (\S+)\n\n(.*?)(?=^## |\Z)", old(), re.MULTILINE | re.DOTALL))
    for name, pairs in tables.items():
        table = summary(pairs)
        off += int((~table.loc[table["strict"], "within"].astype(bool)).sum())
        inside = f"{int(table['within'].sum())} of {len(table)} rows within"
        sections[name] = f"{inside}.\n\n{as_markdown(table)}\n"
    head = HEAD.format(**versions, n_seeds=n_seeds, few=FEW)
    said = [head, *(f"## {name}\n\n{text.rstrip()}\n" for name, text in sections.items())]
    REPORT.write_text("\n".join(said), encoding="utf-8")
    print(f"{REPORT}: {off} ELBOs of {FEW} cells or more are over 1 % off")
    return int(off > 0)


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
