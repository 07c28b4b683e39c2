"""Work beside the training loop: one piece at a time, whose failure is raised in the loop."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Background:
    """A thread for one piece of work at a time. As a context it waits at the end for what is under way."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._under_way: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Wait for the piece under way, raise what it raised, then start `work`."""
        self.wait()
        self._under_way = self._pool.submit(work)

    def check(self) -> bool:
        """Whether nothing is under way. Raises, once, what the last piece raised."""
        if self._under_way is None or self._under_way.done():
            self.wait()
        return self._under_way is None

    def wait(self) -> None:
        """Wait for the piece under way. Raises, once, what it raised."""
        ended, self._under_way = self._under_way, None
        if ended is not None:
            ended.result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is under way is finished even when training failed; of two errors the first is raised."""
        try:
            self.wait()
        except Exception as late:
            if error is None:
                raise
            error.add_note(f"The work in the background failed too: {late}")
        finally:
            self._pool.shutdown()
