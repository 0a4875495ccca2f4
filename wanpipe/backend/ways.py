"""The ways to divide a step among devices: by guidance passes, by tokens, or by both."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Way:
    """`apart` passes are computed by as many parts of the group, and in each part `shares` devices
    share the tokens.
    """

    apart: int = 1
    shares: int = 1

    @property
    def devices(self) -> int:
        """How many devices compute a step."""
        return self.apart * self.shares

    def part(self, rank: int) -> int:
        """Return the part of the group that a rank belongs to, and the pass that it computes."""
        return rank // self.shares

    @property
    def words(self) -> str:
        """This way, for people; "" for one device."""
        passes = "each computes one guidance pass" if self.apart == 2 else ""
        if self.shares == 1:
            return passes
        if passes:
            return f"{self.shares} devices share the tokens of each guidance pass"
        return "they share the tokens"


ALONE = Way()


def possible_ways(devices: int, passes: int, splits: bool) -> list[Way]:
    """Return the ways in which devices can divide the passes of a step, the fastest first.

    Two guidance passes need nothing of each other but the velocity, so apart is faster. With shared
    tokens each device takes less memory. `splits` says whether a group can be divided, which more
    than two devices need for passes apart.
    """
    ways = [Way(shares=devices)]
    if passes == 2 and devices % 2 == 0 and (devices == 2 or splits):
        ways.insert(0, Way(apart=2, shares=devices // 2))
    return ways
