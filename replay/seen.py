"""Which episodes were ever inserted, in little memory: numbers 0-4 and 7 are the bounds 0, 5, 7, 8."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Seen:
    """The episodes there have been, each named by its actor and that actor's running number of it.

    Of each actor only the newest MAX_GAPS gaps are remembered; what is in an older one counts as seen. So an episode
    may come that many later than its actor's next ones, which no retry does.
    """

    MAX_GAPS = 1000

    def __init__(self, bounds: Iterable[tuple[int, list[int]]] = ()) -> None:
        """`bounds`: what `items` gave."""
        self._bounds = dict(bounds)

    def __contains__(self, name: tuple[int, int]) -> bool:
        actor, number = name
        return bisect_right(self._bounds.get(actor, []), number) % 2 == 1

    def add(self, actor: int, number: int) -> None:
        """Nothing changes if it is there already."""
        if (actor, number) in self:
            return
        bounds = self._bounds.setdefault(actor, [])
        for bound in (number, number + 1):  # a bound that was there now has numbers on both sides
            at = bisect_left(bounds, bound)
            if bounds[at : at + 1] == [bound]:
                del bounds[at]
            else:
                bounds.insert(at, bound)
        if len(bounds) > 2 * (self.MAX_GAPS + 1):
            del bounds[1:3]

    def next_number(self, actor: int) -> int:
        """One more than the largest; 0 for a new actor."""
        return self._bounds.get(actor, [0])[-1]

    def items(self) -> list[tuple[int, list[int]]]:
        """(actor, bounds) of all actors, as plain values."""
        return list(self._bounds.items())
