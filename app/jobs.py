"""Long work in a thread of its own, with progress, cancel, and an end when nobody looks any more."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

PATIENCE = 15.0

# Read by OpenMP when torch is loaded. Threads that spin while they wait made a recording 30 times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Cancelled(Exception):
    """Raised inside the work when it was told to stop."""


class Job:
    """Runs work(job) in a thread. Poll `state`: "running", "done" (see `result`), "cancelled" or "failed" (see `error`).

    `alive()` says whether the page that asked is still open; `PATIENCE` seconds without it, and the job cancels itself.
    """

    def __init__(self, work: Callable[[Job], object], alive: Callable[[], bool] = lambda: True):
        self.cancel = threading.Event()
        self.state, self.result, self.error = "running", None, None
        self.part, self.sentence = 0.0, "Starting"
        self.started = time.monotonic()
        self.seconds = 0.0
        self.work, self._alive = work, alive
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="recording")
        self._thread.start()
        threading.Thread(target=self._watch, daemon=True, name="recording-watch").start()

    def progress(self, part: float, sentence: str) -> None:
        """Called by the work: how far it is (0 to 1), and with what. Raises Cancelled if it shall stop."""
        self.part, self.sentence = min(1.0, max(0.0, part)), sentence
        if self.cancel.is_set():
            raise Cancelled

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started if self.running else self.seconds

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end; whether it came."""
        return self._over.wait(seconds)

    def _run(self):
        try:
            self.result = self.work(self)
            state = "cancelled" if self.result is None and self.cancel.is_set() else "done"
        except BaseException as error:
            self.error = error
            state = "cancelled" if self.cancel.is_set() else "failed"
        self.seconds = time.monotonic() - self.started
        self.state = state
        self._over.set()

    def _watch(self):
        seen = time.monotonic()
        while not self._over.wait(1.0):
            if self._alive():
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE:
                self.cancel.set()
                return
