"""Leaving in time: a signal came, or the job's end is near."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("atlasmap")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SECONDS_BEFORE_END = 120.0
AGAIN = 3.0  # seconds
SHARE_BEFORE_END = 0.2  # of a short job's whole time


@dataclass(frozen=True)
class JobTimes:
    """When this job began and when the cluster will end it (seconds since 1970)."""

    start: float
    end: float


# Asked anew (True), or as the job was told at its start (False); None: no limit.
Times = Callable[[bool], JobTimes | None]


def no_limit(anew: bool) -> None:
    """`Times` where nothing ends the job."""


class Stopped(BaseException):
    """The process was told to leave. What it had trained is in a checkpoint, if it keeps any.

    Not an Exception: nothing that mends errors may hold it up.
    """

    def __init__(self, why: str, kind: str = "preempted"):
        self.why, self.kind = why, kind
        super().__init__(why)


def stopped_by(number: int) -> Stopped:
    """What a signal means: Ctrl-C is somebody's wish, others are the cluster's."""
    kind = "interrupted" if number == signal.SIGINT else "preempted"
    return Stopped(f"{signal.Signals(number).name} came", kind)


def leave(number: int, _frame) -> None:
    """Signal handler of work that has nothing to save.

    Python drops what is raised in a destructor or in the callback of a weak reference, of which
    h5py has many: until a failure is being recorded, it is raised again.
    """
    signal.signal(signal.SIGALRM, lambda *_: leave(number, None))
    signal.setitimer(signal.ITIMER_REAL, AGAIN)
    raise stopped_by(number)


def ignore_signals() -> None:
    """From now on nothing interrupts: a failure is being recorded."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def heeded() -> list[signal.Signals]:
    """Signals to listen to: not those that whoever started this process wants ignored."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def install() -> None:
    """From now on SIGTERM, SIGUSR1 and SIGINT raise Stopped."""
    for number in heeded():
        signal.signal(number, leave)


def in_words(seconds: float) -> str:
    """A time left: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Watch:
    """Inside its block signals are noted instead of raised; `reason()` says whether to leave."""

    def __init__(self, times: Times = no_limit):
        self.signal: signal.Signals | None = None
        self.ask, self.times = times, times(False)
        self._before = {}

    def __enter__(self):
        # Handlers can be set in the main thread alone; a notebook may train in another.
        if threading.current_thread() is threading.main_thread():
            for number in heeded():
                self._before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self, number: int, _frame) -> None:
        """Signal handler: remember it for the next look."""
        self.signal = signal.Signals(number)

    def seconds_left(self) -> float:
        """Until work must be put away: infinite without a limit."""
        if self.times is None:
            return float("inf")
        length = self.times.end - self.times.start
        margin = min(SECONDS_BEFORE_END, SHARE_BEFORE_END * length)
        return self.times.end - margin - time.time()

    def reason(self) -> Stopped | None:
        """Why to leave now; None to go on."""
        if self.signal is not None:
            return stopped_by(self.signal)
        if self.seconds_left() > 0:
            return None
        # The limit may have been raised since.
        self.times = self.ask(True) or self.times
        if self.seconds_left() > 0:
            return None
        return Stopped("the job's walltime is nearly over", kind="walltime")
