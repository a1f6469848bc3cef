"""Lengths in tokens as people write them: `4096`, `16K`, `1M`, or a range `16K-32K`."""

import random
import re
from dataclasses import dataclass

from vlm.core.errors import ConfigError

UNITS = {"": 1, "K": 1024, "M": 1024 * 1024}


@dataclass(frozen=True, order=True)
class Budget:
    """A length from `low` to `high` tokens; K is 1024, as in the published `max_seq_length` of 32K.

    >>> Budget.parse("16K-32K")
    Budget(low=16384, high=32768)
    """

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a length or a range from text.

        Raises:
            ConfigError: The text is neither.
        """
        found = re.fullmatch(r"(\d+)([KM]?)(?:-(\d+)([KM]?))?", text.strip().upper())
        if not found:
            raise ConfigError(f"--tokens {text}", expected="a length such as 4096, 16K or 1M, or a range 16K-32K")
        low = int(found[1]) * UNITS[found[2] or (found[4] or "")]
        high = int(found[3]) * UNITS[found[4]] if found[3] else low
        if not 0 < low <= high:
            raise ConfigError(f"--tokens {text}", expected="a length above 0; in a range the smaller one first")
        return cls(low, high)

    def draw(self, rng: random.Random) -> int:
        """Draw a length in the range, high enough that a document 1 % shorter is still in the range."""
        return rng.randint(min(self.high, -(-self.low * 100 // 99)), self.high) if self.high > self.low else self.low

    @property
    def name(self) -> str:
        """`16_32` for 16K to 32K, as the published files are named; a number of tokens where K does not divide it."""
        return "_".join(str(n // 1024 if n % 1024 == 0 else n) for n in (self.low, self.high))
