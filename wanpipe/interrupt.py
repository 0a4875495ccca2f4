"""Interrupts."""


def check() -> None:
    """Raise where a signal came."""
