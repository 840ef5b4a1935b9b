"""What a family of architectures tells the registry about itself."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from kdtrain.models.outputs import Model


@dataclass(frozen=True, kw_only=True)
class Family:
    """The names of one family, how each is checked and how it is built."""

    form: str  # how the names are written, for error messages
    pattern: re.Pattern[str]  # matches a whole name; its groups are the arguments of `broken` and `build`
    broken: Callable[[re.Match[str]], str | None]  # the rule that a name of the right form breaks, or None
    build: Callable[[re.Match[str], int, int], Model]  # (match, num_classes, in_channels)
    examples: tuple[str, ...]  # the names that papers use
    # (depth, width) as the one right name, which `broken` may still refuse; ValueError with the rule for one missing or
    # one too many. Width is a factor of the channels, None that of the bare name. None: the family has neither.
    name: Callable[[int | None, float | None], str] | None = None
