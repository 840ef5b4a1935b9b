"""How names spell numbers: a network has one name only, for trials, files and tables know it by its name."""

import re

WIDTH = r"(?:_w(?P<width>[0-9]{1,4}\.?[0-9]{0,12}|\.[0-9]{1,12}))?"  # the end of a pattern; left out means 1


def width_of(match: re.Match[str]) -> float:
    """How many times as wide as the published network the name wants its own."""
    return float(match["width"] or 1)


def broken_width(match: re.Match[str], channels: int) -> str | None:
    """The rule that `channels` times the width breaks, or None."""
    scaled = channels * width_of(match)
    return None if scaled >= 1 and scaled.is_integer() else f"{channels} times the width must be whole and at least 1"


def ending(match: re.Match[str]) -> str:
    """The right end of a name of this width: `_w0.5`, `_w2`, nothing for 1.

    Ten digits are enough for four before the point and, of a power of two that gives whole channels, six after it.
    """
    width = width_of(match)
    return "" if width == 1 else f"_w{width:.10g}"


def misspelt(match: re.Match[str], right: str) -> str | None:
    """The rule that another spelling than `right` breaks (`vgg08_w0.50` is `vgg8_w0.5`), or None."""
    return None if match[0] == right else f"this network is written {right}"
