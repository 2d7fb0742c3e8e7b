"""When requests arrive, and what they say: the same for every server, from a seed.

Invariant: the same arguments give the same texts and instants, on any machine.
"""

from __future__ import annotations

import random

WORDS = (
    "the", "a", "model", "text", "queue", "batch", "device", "one",
    "lane", "runs", "many", "short", "words", "of", "all", "kinds",
)  # fmt: skip


def texts(count: int, seed: int, shortest: int = 3, longest: int = 40) -> list[str]:
    """Texts of so many words, every length as likely as another."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(shortest, longest))) for _ in range(count)]


def mostly_short(count: int, seed: int, longest: int = 100) -> list[str]:
    """Texts of 1 to `longest` words, a length of half as many words being twice as likely."""
    draw = random.Random(seed)
    lengths = [round(longest ** draw.random()) for _ in range(count)]
    return [" ".join(draw.choices(WORDS, k=length)) for length in lengths]


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Instants of a Poisson process, `rate` a second, in seconds from the begin, ascending."""
    if rate <= 0:
        raise ValueError(f"a rate of {rate} a second: give more than 0")
    draw, at, instants = random.Random(seed), 0.0, []
    while (at := at + draw.expovariate(rate)) < seconds:
        instants.append(at)
    return instants
