import itertools
import math

import numpy as np
import pytest
from scipy import stats

from kdtrain.draws import Stream, below, permutation, raw, same_class

MASK = 2**64 - 1
TOP = 2**64 - 1


def philox(counter, key):
    """Philox 4x64-10 (Salmon et al., SC 2011), one block of four numbers, from the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
        c = [(second >> 64) ^ c[1] ^ k[0], second & MASK, (first >> 64) ^ c[3] ^ k[1], first & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def uint64(*numbers):
    return np.array(numbers, dtype=np.uint64)


class TestRaw:
    def test_the_oracle_gives_the_authors_known_answer(self):
        # Random123, kat_vectors: philox4x64 10 of counter 0 and key 0.
        known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
        assert philox([0] * 4, [0] * 2) == known

    @pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
    @pytest.mark.parametrize("stream", list(Stream))
    @pytest.mark.parametrize("place", [0, 7, 2**40])
    def test_is_philox_of_seed_stream_and_place(self, seed, stream, place):
        blocks = [philox([block, 0, stream, place], [seed, 0]) for block in (1, 2, 3)]
        assert raw(seed, stream, place, 10).tolist() == list(itertools.chain(*blocks))[:10]

    def test_shape_is_row_major(self):
        assert raw(1, Stream.VIEWS, 2, (4, 3)).flatten().tolist() == raw(1, Stream.VIEWS, 2, 12).tolist()

    def test_fewer_numbers_are_the_first_of_more(self):
        assert raw(1, Stream.ORDER, 2, 10).tolist() == raw(1, Stream.ORDER, 2, 1000)[:10].tolist()

    def test_seeds_streams_and_places_share_no_numbers(self):
        # Streams that were merely shifted against each other would repeat numbers; 2^64 leaves no chance for it.
        cases = list(itertools.product((0, 1), Stream, (0, 1, 2, 100)))
        numbers = [raw(seed, stream, place, 2000) for seed, stream, place in cases]
        assert len(np.unique(np.concatenate(numbers))) == len(cases) * 2000

    def test_values_of_the_streams_are_part_of_every_trials_identity(self):
        assert {stream.name: stream.value for stream in Stream} == {
            "VIEWS": 0, "SUBSET": 1, "ORDER": 2, "PARTNERS": 3, "PARTNER_VIEWS": 4, "TURNED_90": 5, "TURNED_180": 6,
            "TURNED_270": 7, "TEST": 8,
        }  # fmt: skip


class TestBelow:
    @pytest.mark.parametrize("bound", [1, 2, 9, 1000, 50_000, 2**31])
    def test_equals_exact_integers(self, bound):
        numbers = [0, 1, 2**32 - 1, 2**32, 2**63, TOP, *raw(0, Stream.VIEWS, 0, 500).tolist()]
        assert below(uint64(*numbers), bound).tolist() == [(x >> 32) * bound >> 32 for x in numbers]

    def test_extremes_are_the_ends(self):
        assert below(uint64(0, TOP), 9).tolist() == [0, 8]

    def test_a_bound_for_each_number(self):
        got = below(uint64(2**63, TOP, 0), np.array([10, 3, 5]))
        assert got.tolist() == [5, 2, 0]
        assert got.dtype == np.int64

    @pytest.mark.parametrize("bound", [2, 7, 9, 100])
    def test_uniform(self, bound):
        counts = np.bincount(below(raw(0, Stream.VIEWS, 1, 50_000), bound), minlength=bound)
        assert len(counts) == bound
        # Fixed seeds, so the tests cannot fail by chance; 1e-3 is far from what a biased draw gives.
        assert stats.chisquare(counts).pvalue > 1e-3


class TestPermutation:
    @pytest.mark.parametrize("n", [0, 1, 2, 17, 5000])
    def test_every_place_once(self, n):
        got = permutation(3, Stream.ORDER, 1, n)
        assert got.dtype == np.int64
        assert sorted(got.tolist()) == list(range(n))

    def test_repeatable_and_other_for_other_seeds_streams_and_places(self):
        first = permutation(3, Stream.ORDER, 1, 50).tolist()
        assert permutation(3, Stream.ORDER, 1, 50).tolist() == first
        others = [
            permutation(4, Stream.ORDER, 1, 50),
            permutation(3, Stream.SUBSET, 1, 50),
            permutation(3, Stream.ORDER, 2, 50),
        ]
        assert all(other.tolist() != first for other in others)

    def test_all_orders_are_equally_likely(self):
        seen = [tuple(permutation(0, Stream.ORDER, place, 4).tolist()) for place in range(12_000)]
        counts = [seen.count(order) for order in itertools.permutations(range(4))]
        assert len(counts) == math.factorial(4)
        assert sum(counts) == 12_000
        assert stats.chisquare(counts).pvalue > 1e-3


class TestSameClass:
    LABELS = np.array([7, 2, 7, 2, 9, 2, 7, 2])

    def test_of_the_same_class(self):
        for epoch in range(50):
            assert self.LABELS[same_class(0, epoch, self.LABELS)].tolist() == self.LABELS.tolist()

    def test_one_of_its_kind_is_its_own_partner(self):
        assert {same_class(0, epoch, self.LABELS)[4] for epoch in range(20)} == {4}

    def test_repeatable_and_other_for_other_seeds_and_epochs(self):
        labels = np.arange(200) % 3
        first = same_class(3, 1, labels).tolist()
        assert same_class(3, 1, labels).tolist() == first
        assert same_class(3, 2, labels).tolist() != first
        assert same_class(4, 1, labels).tolist() != first

    def test_all_members_are_equally_likely_for_each_sample_and_independent_of_its_neighbours(self):
        drawn = np.array([same_class(5, epoch, self.LABELS) for epoch in range(6000)])
        for sample, label in enumerate(self.LABELS):
            members = np.flatnonzero(label == self.LABELS)
            counts = [np.sum(drawn[:, sample] == member) for member in members]
            assert sum(counts) == 6000
            assert label == 9 or stats.chisquare(counts).pvalue > 1e-3
        pairs = np.bincount(3 * np.searchsorted([0, 2, 6], drawn[:, 0]) + np.searchsorted([0, 2, 6], drawn[:, 2]))
        assert len(pairs) == 9
        assert stats.chisquare(pairs).pvalue > 1e-3
