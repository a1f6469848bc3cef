"""Repeat what a network or a busy server may refuse for a while, with a pause that doubles.

backoff = Backoff(tries=5, first=1.0)
while True:
    try:
        return ask()
    except Busy as busy:
        if not backoff.again(asked=busy.seconds):
            raise
"""

import math
import time
from dataclasses import dataclass


@dataclass
class Backoff:
    """Count the attempts that failed in a row, and pause between two attempts.

    Args:
        tries: Attempts in a row that may fail before `again` gives up.
        first: Seconds of the pause after the first failure; each further failure doubles it.
        longest: Upper limit of a pause in seconds.

    >>> backoff = Backoff(tries=2, first=0.0)
    >>> backoff.again(), backoff.again()
    (True, False)
    """

    tries: int
    first: float
    longest: float = math.inf
    failures: int = 0

    def again(self, *, asked: float = 0.0, progress: bool = False) -> bool:
        """Count a failed attempt, pause, and return whether to try again.

        Args:
            asked: Seconds that the server asked for; the pause is at least as long, up to `longest`.
            progress: The attempt failed but got further than the one before it. The count starts again,
                and the pause is half of `first`.

        Returns:
            True after the pause; False, without a pause, once `tries` attempts in a row have failed.
        """
        self.failures = 0 if progress else self.failures + 1
        if self.failures >= self.tries:
            return False
        time.sleep(min(self.longest, max(asked, self.first * 2.0 ** (self.failures - 1))))
        return True
