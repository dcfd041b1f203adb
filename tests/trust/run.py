"""`make trust`: every task trained (unless it is there), judged and scored, and the page of it.

What a task trained is kept in results/trust, so that this can be stopped and started again.
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOP = ROOT / "results/trust"
N_PROCESSES = 2
os.environ.setdefault("MKL_CBWR", "AUTO")  # as commands set it


def work(number: int) -> str:
    """One task; its rows lie beside what was trained."""
    import torch
    from cases import make
    from score import rows_of
    from tasks import all_tasks

    torch.set_num_threads(1)
    task, began = all_tasks()[number], time.monotonic()
    rows = rows_of(task, make(task, TOP))
    (TOP / task.name / "scores.json").write_text(json.dumps(rows, indent=1, default=float))
    return f"{task.name}: {time.monotonic() - began:.0f} s"


def main() -> None:
    from page import write
    from tasks import all_tasks

    if not (ROOT.parent / "shared/data").is_dir():
        sys.exit("needs the development data in ../shared/data")
    tasks = all_tasks()
    if sys.argv[1:] != ["page"]:
        # Processes are started anew: none inherits another's threads or numbers.
        with multiprocessing.get_context("spawn").Pool(N_PROCESSES, maxtasksperchild=4) as pool:
            for done, said in enumerate(pool.imap_unordered(work, range(len(tasks))), 1):
                print(f"{done} of {len(tasks)}  {said}", flush=True)
    rows = [json.loads((TOP / task.name / "scores.json").read_text()) for task in tasks]
    write([row for of_task in rows for row in of_task], ROOT / "docs")


if __name__ == "__main__":
    main()
