"""Signals that ask a command to stop: raised at once as an exception, or deferred to the end of a block."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]  # Windows has two
PATIENCE = 5.0  # seconds until another signal interrupts again: a library may have swallowed the first exception


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop. Not an `Exception`, so no handler mistakes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class StopSignals:
    """The signals that asked this command to stop; `number` is the first one, None before any.

    Further signals change nothing: the command is stopping already.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = False
        self._answer = ""
        self._last = 0.0
        self._process = os.getpid()

    @contextmanager
    def handled(self, deferred: bool = False, answer: str = "") -> Iterator[None]:
        """Raise `Interrupted` in this block on a signal; if `deferred`, only when the block has ended normally.

        A deferred signal is answered at once by the line `answer` on stderr, if there is one. Blocks can be nested. An
        ignored SIGHUP (nohup) stays ignored. Only the main thread can handle signals.
        """
        outer, self._deferred, self._answer = self._deferred, deferred, answer
        main = threading.current_thread() is threading.main_thread()
        hangup = getattr(signal, "SIGHUP", None)
        nohup = hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN
        asking = [number for number in ASKING if main and not (nohup and number == hangup)]
        before = {number: signal.signal(number, self._handle) for number in asking}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by a library in C
            self._deferred = outer
        if deferred:
            self.check()

    def check(self) -> None:
        """Raise `Interrupted` if a signal came and was deferred or swallowed."""
        if self.number is not None:
            raise Interrupted(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which its parent ends by a signal
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        again = self.number is not None and now - self._last < PATIENCE
        if self.number is None:
            self.number = number
            if self._deferred and self._answer:
                os.write(2, f"\n{self._answer}\n".encode())  # `print` may be what the signal has interrupted
        if not self._deferred and not again:
            self._last = now
            raise Interrupted(number)
