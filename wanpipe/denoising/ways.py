"""How the devices of a group divide a step: by guidance passes, by tokens, or by both."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Way:
    """`apart` passes are computed by as many parts of the group, and in each part `shares` devices
    share the tokens.
    """

    apart: int
    shares: int

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


def choose_way(devices: int, passes: int, splits: bool) -> Way:
    """Choose how devices divide the passes of a step.

    Two guidance passes need nothing of each other, so they are computed apart where they can be.
    `splits` says whether a group can be divided, which more than two devices need for that.
    """
    if passes == 2 and devices % 2 == 0 and (devices == 2 or splits):
        return Way(apart=2, shares=devices // 2)
    return Way(apart=1, shares=devices)
