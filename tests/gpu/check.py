"""What is to be known of a GPU, within minutes (`make gpu-check`).

Each stage of stages.py runs in a process of its own, so that one that fails, or is stopped when its
time is over, takes no other with it. Each figure is printed and written as it comes. Ends with 1 if
a figure is not as it must be, or a stage did not end well.
"""

import argparse
import json
import logging
import multiprocessing
import re
import sys
import time
import traceback
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path

from atlasmap.files import written_aside

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "docs/gpu_check.json"
SECONDS = {"environment": 60, "tests": 240, "golden": 60, "cpu": 120, "bits": 120, "speed": 120}
ALL_SECONDS = 460


@dataclass
class Report:
    """The figures of one run, in a file of all runs."""

    out: Path
    about: dict
    figures: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.known = json.loads(self.out.read_text()) if self.out.is_file() else []

    def add(self, figure: dict) -> None:
        """Print one more and write all."""
        print(json.dumps(figure), flush=True)
        self.figures.append(figure)
        with written_aside(self.out) as aside:
            ran = self.about | {"figures": self.figures}
            text = json.dumps([*self.known, ran]).replace('{"stage"', '\n{"stage"')  # a line each
            aside.write_text(text + "\n")

    @property
    def failed(self) -> list[dict]:
        """Figures that are not as they must be."""
        return [figure for figure in self.figures if not figure["ok"]]


def missing() -> list[str]:
    """Packages of wheels.txt that this Python does not have."""
    absent = []
    for name in re.findall(r"^[a-z].*", (HERE / "wheels.txt").read_text(), re.MULTILINE):
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    return absent


def work(stage: str, told: argparse.Namespace, pipe: Connection) -> None:
    """Run a stage, in its own process; figures, and what it failed of, go into the pipe."""
    began = time.monotonic()

    def say(what: str, found, ok: bool = True, **more) -> None:
        after = round(time.monotonic() - began, 1)
        pipe.send({"stage": stage, "what": what, "found": found, "ok": bool(ok)} | more
                  | {"after": after})  # fmt: skip

    logging.disable(logging.WARNING)
    try:
        import stages

        getattr(stages, stage)(stages.How(told.device, told.size == "small"), say)
        say("ended", "well")
    except BaseException:
        say("ended", traceback.format_exc()[-3000:], ok=False)


def run_stage(stage: str, told: argparse.Namespace, seconds: float, report: Report) -> None:
    """Run a stage for at most so many seconds; how it ended is its last figure."""
    # A fork has its packages already, but CUDA fails in it if any of them has looked for a GPU.
    start = multiprocessing.get_context("fork" if told.size == "small" else "spawn")
    ours, theirs = start.Pipe(duplex=False)
    process = start.Process(target=work, args=(stage, told, theirs))
    end, figure = time.monotonic() + seconds, {}
    process.start()
    theirs.close()
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            figure = ours.recv()
            report.add(figure)
        found = f"stopped after {seconds:.0f} s, when its time was over"
    except EOFError:
        process.join()
        found = f"died with exit code {process.exitcode}"
    process.kill()
    process.join()
    if figure.get("what") != "ended":
        report.add({"stage": stage, "what": "ended", "found": found, "ok": False})


def check(told: argparse.Namespace) -> int:
    """Run the stages one after another; 1 if anything failed."""
    began = time.monotonic()
    absent = missing()
    if absent:
        print(f"missing here: {' '.join(absent)} (`make wheels` where there is a network, then "
              "carry .wheels)", file=sys.stderr)  # fmt: skip
    try:
        import stages  # noqa: F401
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {error}") from error
    about = {"begun": time.strftime("%Y-%m-%d %H:%M"), "device": told.device, "size": told.size}
    report = Report(told.out, about)
    for stage in told.stages:
        left = max(0.0, told.seconds - (time.monotonic() - began))
        run_stage(stage, told, min(left, SECONDS[stage]), report)
    took = time.monotonic() - began
    print(f"{len(report.figures)} figures, {len(report.failed)} failed, {took:.0f} s: {told.out}")
    for figure in report.failed:
        print(f"failed: {figure['stage']}: {figure['what']}: {figure['found']}")
    return int(bool(report.failed))


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "forced"), default="cuda",
                        help="forced: a CPU's tensors by a GPU's name")  # fmt: skip
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--stages", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="for all stages")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return check(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
