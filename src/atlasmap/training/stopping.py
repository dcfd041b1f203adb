"""Stopping in time: on a signal, or shortly before the job's walltime ends."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("atlasmap")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SECONDS_BEFORE_END = 120.0
AGAIN = 3.0  # seconds until Stopped is raised again
SHARE_BEFORE_END = 0.2  # for short jobs: fraction of the job's whole time


@dataclass(frozen=True)
class JobTimes:
    """Start of this job, and its end by the cluster's time limit (seconds since 1970)."""

    start: float
    end: float


# Returns the job's times: asked from the cluster now (True) or as known at its start (False);
# None: no limit.
Times = Callable[[bool], JobTimes | None]


def no_limit(anew: bool) -> None:
    """`Times` of a process without a time limit."""


class Stopped(BaseException):
    """The process must stop. A training in progress is in a checkpoint, if checkpoints are kept.

    `kind`: interrupted (Ctrl-C), preempted or walltime. A BaseException, so that no `except
    Exception` catches it.
    """

    def __init__(self, why: str, kind: str = "preempted"):
        self.why, self.kind = why, kind
        super().__init__(why)


def stopped_by(number: int) -> Stopped:
    """The exception for a signal; its kind is "interrupted" for Ctrl-C, else "preempted"."""
    kind = "interrupted" if number == signal.SIGINT else "preempted"
    return Stopped(f"{signal.Signals(number).name} came", kind)


def leave(number: int, _frame) -> None:
    """Signal handler that raises Stopped at once, outside of training.

    Python drops exceptions raised in a destructor or in the callback of a weak reference, of which
    h5py has many. A timer therefore raises again, until `ignore_signals` is called.
    """
    signal.signal(signal.SIGALRM, lambda *_: leave(number, None))
    signal.setitimer(signal.ITIMER_REAL, AGAIN)
    raise stopped_by(number)


def ignore_signals() -> None:
    """Ignore signals from now on, while a failure is being recorded."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def heeded() -> list[signal.Signals]:
    """The signals to handle: those of SIGNALS that the parent process did not set to be ignored."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def install() -> None:
    """Make SIGTERM, SIGUSR1 and SIGINT raise Stopped from now on."""
    for number in heeded():
        signal.signal(number, leave)


def in_words(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Watch:
    """Context manager that records signals instead of raising; `reason()` tells whether to stop."""

    def __init__(self, times: Times = no_limit):
        self.signal: signal.Signals | None = None
        self.ask, self.times = times, times(False)
        self._before = {}

    def __enter__(self):
        # Python sets handlers in the main thread only; a notebook may train in another.
        if threading.current_thread() is threading.main_thread():
            for number in heeded():
                self._before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self, number: int, _frame) -> None:
        """Signal handler: record the signal for `reason`."""
        self.signal = signal.Signals(number)

    def seconds_left(self) -> float:
        """Seconds until work must be saved; infinite without a time limit."""
        if self.times is None:
            return float("inf")
        length = self.times.end - self.times.start
        margin = min(SECONDS_BEFORE_END, SHARE_BEFORE_END * length)
        return self.times.end - margin - time.time()

    def reason(self) -> Stopped | None:
        """The exception to raise if the process must stop now; None to go on."""
        if self.signal is not None:
            return stopped_by(self.signal)
        if self.seconds_left() > 0:
            return None
        # The limit may have been raised since.
        self.times = self.ask(True) or self.times
        if self.seconds_left() > 0:
            return None
        return Stopped("the job's walltime is nearly over", kind="walltime")
