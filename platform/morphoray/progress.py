"""How far a long piece of work is, a line every few seconds."""

import time


class Progress:
    """Prints one line every few seconds: what is done of how many, the rate and the time left.

    before: units that an earlier call did; they are told at once, and count in no rate.
    """

    def __init__(self, what: str, total: int, unit: str, before: int = 0, every_s: float = 5) -> None:
        self._what, self._total, self._unit, self._every_s = what, total, unit, every_s
        self._before, self._done = before, before
        self._started = self._printed = time.monotonic()
        if before:
            print(f"{self._counted()} done before", flush=True)

    def add(self, count: int, note: str = "") -> None:
        """Count `count` more units; prints when it is time to, and at the end."""
        self._done += count
        now = time.monotonic()
        if now - self._printed < self._every_s and self._done < self._total:
            return
        self._printed = now
        rate = (self._done - self._before) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9)
        print(f"{self._counted()}  {rate:.1f} {self._unit}/s  {left:.0f} s left{note}", flush=True)

    def _counted(self) -> str:
        share = 100 * self._done // max(1, self._total)
        return f"{self._what}  {share:3d} %  {self._done}/{self._total} {self._unit}"
