"""Numbers as people read them."""

import pytest

from sweeps.words import count, duration, storage


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_count():
    assert [count(number, "trial") for number in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 kB"), (1, "1 kB"), (2001, "3 kB"), (1_000_000, "1 MB"), (49_872_000, "50 MB"), (3_940_000_000, "3.9 GB")],
)
def test_storage(size, text):
    assert storage(size) == text
