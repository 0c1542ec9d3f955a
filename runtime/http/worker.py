"""The thread that runs the model: one job at a time, and it can always be stopped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from runtime.engine_client.process import kill_engines

_END_SECONDS = 5.0  # for the job in progress; then its engine is killed


class Worker(ThreadPoolExecutor):
    """One thread."""

    def __init__(self) -> None:
        super().__init__(1, "work")

    def finish(self, last: Callable[[], None]) -> None:
        """Ends the thread; cancel the job in progress first.

        Args:
            last: the thread's last job; closes the model.
        """
        closed = self.submit(last)
        try:
            if not wait([closed], _END_SECONDS).done:
                kill_engines()  # an engine hangs; its caller gets an error
        except BaseException:
            kill_engines()
            raise
        finally:
            self.shutdown()
