"""How names spell numbers: a network has one name only, for trials, files and tables know it by its name."""

import re
from typing import TypeVar

T = TypeVar("T")

WIDTH = r"(?:_w(?P<width>[0-9]{1,4}\.?[0-9]{0,12}|\.[0-9]{1,12}))?"  # the end of a pattern; left out means 1


def width_of(match: re.Match[str]) -> float:
    """How many times as wide as the published network the name wants its own."""
    return float(match["width"] or 1)


def broken_width(match: re.Match[str], channels: int) -> str | None:
    """The rule that `channels` times the width breaks, or None."""
    scaled = channels * width_of(match)
    return None if scaled >= 1 and scaled.is_integer() else f"{channels} times the width must be whole and at least 1"


def ending(width: float | None, bare: float = 1) -> str:
    """The right end of a name of this width: `_w0.5`, `_w2`, nothing for None and for `bare`, the width without an end.

    Rounded to the twelve decimals of WIDTH: 0.1 + 0.2 is written 0.3.
    """
    if width is None:
        return ""
    decimals = f"{width:.12f}".rstrip("0").rstrip(".")
    return "" if float(decimals) == bare else f"_w{decimals}"


def required(key: str, value: T | None) -> T:
    """The depth or width of a family that needs it; ValueError if there is none."""
    if value is None:
        raise ValueError(f"{key} is required")
    return value


def superfluous(key: str, value: float | None) -> None:
    """ValueError if there is a depth or width of a family without it."""
    if value is not None:
        raise ValueError(f"{key} must be left out")


def whole(key: str, value: float) -> int:
    """A width that is written as a whole number; ValueError if it is none."""
    if not float(value).is_integer():
        raise ValueError(f"{key} must be whole")
    return int(value)


def misspelt(match: re.Match[str], right: str) -> str | None:
    """The rule that another spelling than `right` breaks (`vgg08_w0.50` is `vgg8_w0.5`), or None."""
    return None if match[0] == right else f"this network is written {right}"
