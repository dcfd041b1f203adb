"""What is said while a model is trained."""

import logging
import sys
import time

from tqdm import tqdm

from atlasmap.training.history import History
from atlasmap.training.stopping import Watch

log = logging.getLogger("atlasmap")
SECONDS_BETWEEN_LINES = 5


class Progress:
    """A bar on a terminal; one line every few seconds elsewhere. Says early if the job's time will
    not do."""

    def __init__(self, name: str, n_epochs: int, epoch: int, watch: Watch):
        self.name, self.n_epochs, self.watch = name, n_epochs, watch
        self.first, self.began, self.warned = epoch, time.monotonic(), False
        self.said = self.began
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=n_epochs, initial=epoch, desc=name, unit="epoch", disable=not self.live
        )

    def tell(self, done: int, history: History, metric: str) -> None:
        """`done` epochs are done; `metric` says how it goes."""
        shown = history.last("validation", metric) or history.last("train", metric)
        self.bar.set_postfix_str(f"{metric} {shown:.4g}")
        self.bar.update()
        last = done == self.n_epochs
        if not self.live and (last or time.monotonic() - self.said > SECONDS_BETWEEN_LINES):
            self.said = time.monotonic()
            said = (self.name, done, self.n_epochs, metric, shown)
            log.info("%s: epoch %d of %d, %s %.2f", *said)
        self.foresee(done)

    def foresee(self, done: int) -> None:
        """Epochs left × seconds an epoch against the job's end."""
        an_epoch = (time.monotonic() - self.began) / (done - self.first)
        need, have = (self.n_epochs - done) * an_epoch, self.watch.seconds_left()
        if need > have and not self.warned:
            self.warned = True
            log.warning(
                "%s: %d epochs of %.1f s each need %.0f min, the job has %.0f min left: it will "
                "leave a checkpoint, which the next attempt takes up",
                self.name, self.n_epochs - done, an_epoch, need / 60, have / 60,
            )  # fmt: skip
