"""The order of runs: each waits for the stages that it takes from another; bookkeeping only, nothing is carried out."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping

from cepdiff.sweeps.plan import Source
from cepdiff.sweeps.state import FAILED, FINISHED, RUNNING, WAITING


class Schedule:
    """Which runs can start, and what the end of one means for the others.

    The end of a run costs a constant time, and a constant time for each run that waited for it.

    Args:
        labels: of the runs, in their order.
        sources: label -> the run from which it takes stages.
        finished: labels that need nothing more.
        retries: how often a run whose process was killed starts again.
        failed: labels of runs that are not tried again.
    """

    def __init__(
        self,
        labels: Iterable[str],
        sources: Mapping[str, Source],
        finished: Iterable[str] = (),
        retries: int = 1,
        failed: Iterable[str] = (),
    ) -> None:
        done = {**dict.fromkeys(failed, FAILED), **dict.fromkeys(finished, FINISHED)}
        self.status = {label: done.get(label, WAITING) for label in labels}
        self.counts = Counter(self.status.values())
        self.retries = retries
        self.source_of: dict[str, str] = {}  # of the runs that can start
        self._ready: deque[str] = deque()
        # label -> (number and name of its stage) -> the runs that wait for this stage
        self._waiting: dict[str, dict[tuple[int, str], deque[str]]] = {}
        self._attempts: dict[str, int] = {}
        self._running: dict[str, None] = {}  # in the order of their starts
        for label, status in self.status.items():
            if status != WAITING:
                continue
            source = sources.get(label)
            if source is None:
                self._ready.append(label)
            elif source.label in done:
                self._release([label], source.label)
            else:
                self._waiting.setdefault(source.label, {}).setdefault((source.depth, source.stage), deque()).append(
                    label
                )

    @property
    def over(self) -> bool:
        """True if nothing is running and nothing can start."""
        return not self._ready and not self._running

    @property
    def running(self) -> int:
        """Number of runs that are running."""
        return len(self._running)

    def take(self, most: int) -> list[str]:
        """Up to `most` runs to start now."""
        taken = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
        for label in taken:
            self._set(label, RUNNING)
            self._attempts[label] = self._attempts.get(label, 0) + 1
        self._running.update(dict.fromkeys(taken))
        return taken

    def ended(self, label: str, code: int) -> bool:
        """Note that a run ended with an exit code; True if that was its last attempt."""
        del self._running[label]
        if code == 0:
            self._set(label, FINISHED)
            for runs in self._waiting.pop(label, {}).values():
                self._release(runs, label)
            return True
        if was_killed(code) and self._attempts[label] <= self.retries:
            self._set(label, WAITING)
            self._ready.append(label)
            return False
        self._set(label, FAILED)
        self._hand_on(label)
        return True

    def look(self, has: Callable[[str, str], bool]) -> None:
        """Let the runs start whose stages are finished by now, as `has(label, stage)` says."""
        for label in [label for label in self._running if label in self._waiting]:
            stages = self._waiting[label]
            for place in [place for place in stages if has(label, place[1])]:
                self._release(stages.pop(place), label)
            if not stages:
                del self._waiting[label]

    def _set(self, label: str, status: str) -> None:
        self.counts[self.status[label]] -= 1
        self.counts[status] += 1
        self.status[label] = status

    def _hand_on(self, failed: str) -> None:
        """Of the runs that wait for one that failed, one makes the stages itself, and the others wait for that one.

        The first takes over what the failed run has finished. It has the most stages in common with it, so at least as
        many with each of the others as they have with the failed one.
        """
        groups = self._waiting.pop(failed, {})
        if not groups:
            return
        deepest = max(groups)
        first = groups[deepest].popleft()
        if not groups[deepest]:
            del groups[deepest]
        self._release([first], failed)
        for place, runs in self._waiting.pop(first, {}).items():
            groups.setdefault(place, deque()).extend(runs)
        if groups:
            self._waiting[first] = groups  # as a whole: no run is touched again until it starts

    def _release(self, runs: Iterable[str], source: str) -> None:
        """Let runs start that take stages from `source`."""
        for label in runs:
            self.source_of[label] = source
            self._ready.append(label)


def was_killed(code: int) -> bool:
    """True for the exit code of a process that a signal ended (a full memory, a time limit), not a failure."""
    return code < 0 or code > 128
