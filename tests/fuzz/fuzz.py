"""Altered files through the first rule's commands (`make fuzz`): a table of kinds and verdicts.

python tests/fuzz/fuzz.py [--seed N]      the seed is the day's unless one is given
"""

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

from altered import ALTER, all_judged, alter


def kind(name: str) -> str:
    """What was altered, without how."""
    return name.split(":")[0].split("@")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.strftime("%Y%m%d")))
    seed = parser.parse_args().seed
    if not ALTER.is_file():
        print(f"the script that alters files is not there: {ALTER}")
        return 0
    print(f"seed {seed}")
    table, wrong = collections.defaultdict(collections.Counter), []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.h5ad"
        alter().make_base(base)
        cases, blobs = alter().altered(base, seed)
        for name, trial, verdict, said in all_judged(base, cases | blobs, Path(folder)):
            table[kind(name)][verdict] += 1
            if verdict == "wrong":
                wrong.append(f"{name} · {trial}: {said}")
                print(wrong[-1], flush=True)
    print(f"{'kind':24} {'coded':>8} {'accepted and right':>20} {'wrong':>8}")
    for name, row in sorted(table.items()):
        print(f"{name:24} {row['coded']:8} {row['right']:20} {row['wrong']:8}")
    whole = sum(table.values(), collections.Counter())
    print(f"{'all':24} {whole['coded']:8} {whole['right']:20} {whole['wrong']:8}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
