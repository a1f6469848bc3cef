"""Waiting that does not make a run deaf: a signal ends it, and so does the limit on a sample.

>>> within(300, partial(processor.encode, messages))     # doctest: +SKIP

What is waited for is made in another thread. A thread whose file never answers is left behind: it cannot be ended, and
it ends with the process.
"""

import math
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from vlm.core.errors import MediaError

T = TypeVar("T")
LOOK = 0.1
"""Seconds between two looks at the signals."""
LEAVE = 3.0
"""Seconds for a thread to end by itself before it is left behind."""


class Overdue(MediaError):
    """A sample took longer than `sample_seconds` of its recipe.

    >>> within(0.1, lambda: time.sleep(60))     # doctest: +SKIP
    Overdue: not made within 0.1 s: a file that does not answer, or a machine that is too busy
    """


class Made(Generic[T]):
    """A value that a thread makes: `get` returns it, or raises what the thread has raised."""

    def __init__(self, make: Callable[[], T]):
        self.make = make
        self.value: list[T] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.value.append(self.make())
        except BaseException as error:  # noqa: BLE001  # not lost: `get` raises it again
            self.error = error

    def get(self, seconds: float = math.inf, stop: Sequence[int] = ()) -> T | None:
        """Return the value; None as soon as `stop` has something in it.

        The seconds are counted look by look, not by the clock: a process that was suspended meanwhile has not waited.

        Raises:
            Overdue: it is not there after `seconds`.
        """
        left = seconds
        while not stop:
            self.thread.join(min(LOOK, left))
            if not self.thread.is_alive():
                if self.error is not None:
                    raise self.error
                return self.value[0]
            left -= LOOK
            if left <= 0:
                found = f"not made within {seconds:g} s: a file that does not answer, or a machine that is too busy"
                raise Overdue(found, fix="repair the file system, or raise `sample_seconds` of the recipe")
        return None


def within(seconds: float, make: Callable[[], T]) -> T:
    """Return what `make` returns. Raises Overdue when that takes longer."""
    value: T = Made(make).get(seconds)  # type: ignore[assignment]  # None comes only with `stop`
    return value


def prefetch(make: Callable[[int], T], first: int, total: int, stop: Sequence[int]) -> Generator[T | None, None, None]:
    """Yield what `make` makes of each step, one step ahead in a thread; None once `stop` has something in it.

    Decoding images releases the interpreter, so it costs the training next to nothing.
    """
    if first >= total:
        return
    ahead = Made(lambda: make(first))
    try:
        for step in range(first, total):
            current = ahead.get(stop=stop)
            if current is not None and step + 1 < total:
                ahead = Made(lambda step=step: make(step + 1))  # type: ignore[misc]  # the step of now
            yield current
    finally:
        ahead.thread.join(LEAVE)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGUSR1 and the first Ctrl-C in a list; the second Ctrl-C stops at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _: Any) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {s: signal.signal(s, note) for s in signals}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
