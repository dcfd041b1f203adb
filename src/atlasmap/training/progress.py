"""Progress messages of a training."""

import logging
import sys
import time

from tqdm import tqdm

from atlasmap.training.history import History
from atlasmap.training.stopping import Watch, in_words

log = logging.getLogger("atlasmap")
SECONDS_BETWEEN_LINES = 5  # at least; later a twentieth of the time trained so far
LINES = 20
FOR_TERMINAL = {"progress": True}  # marks log lines that the user of a workflow should see


class Progress:
    """Progress bar on a terminal; elsewhere log lines at growing intervals. Warns once if the
    job's time will not be enough for the training."""

    def __init__(self, name: str, n_epochs: int, epoch: int, watch: Watch):
        self.name, self.n_epochs, self.watch = name, n_epochs, watch
        self.first, self.began, self.warned = epoch, time.monotonic(), False
        self.said = self.began
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=n_epochs, initial=epoch, desc=name, unit="epoch", disable=not self.live
        )

    def tell(self, done: int, history: History, metric: str) -> None:
        """Report that `done` epochs are done, with the latest value of `metric`."""
        shown = history.last("validation", metric) or history.last("train", metric)
        self.bar.set_postfix_str(f"{metric} {shown:.4g}")
        self.bar.update()
        now, last = time.monotonic(), done == self.n_epochs
        wait = max(SECONDS_BETWEEN_LINES, (now - self.began) / LINES)
        an_epoch = (now - self.began) / (done - self.first)
        if not self.live and (last or now - self.said > wait):
            self.said = now
            left = in_words((self.n_epochs - done) * an_epoch)
            said = (self.name, done, self.n_epochs, metric, shown, left)
            log.info("%s: epoch %d of %d, %s %.2f, %s left", *said, extra=FOR_TERMINAL)
        self.foresee(done, an_epoch)

    def foresee(self, done: int, an_epoch: float) -> None:
        """Warn once if the epochs left, `an_epoch` seconds each, exceed the job's time left."""
        need, have = (self.n_epochs - done) * an_epoch, self.watch.seconds_left()
        if need > have and not self.warned:
            self.warned = True
            log.warning(
                "%s: %d epochs of %.1f s each need %.0f min, the job has %.0f min left: it will "
                "leave a checkpoint, which the next attempt takes up",
                self.name, self.n_epochs - done, an_epoch, need / 60, have / 60,
            )  # fmt: skip
