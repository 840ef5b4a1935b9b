"""The batches of a trial. Its images are noise, so what was done to one is found by trying everything."""

import numpy as np
import pytest
import torch
from scipy import stats

from kdtrain import batches
from kdtrain.batches import Batches
from kdtrain.config import DataConfig, MethodRef, Recipe, TrialConfig
from kdtrain.data.dataset import Dataset, Info
from kdtrain.data.memory import Memory

N, CLASSES, SIZE = 40, 4, 28
LABELS = torch.arange(N) % CLASSES


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)

    def noise(n):
        pixels = torch.from_numpy(rng.integers(1, 256, (n, 2, SIZE, SIZE), dtype=np.uint8))
        return pixels.contiguous(memory_format=torch.channels_last)

    info = Info(
        name="noise", num_classes=CLASSES, in_channels=2, image_size=SIZE, mean=(0.0, 0.0), std=(1 / 255, 1 / 255),
        open=lambda info, where, device: None,
    )  # fmt: skip
    train, test = Memory(noise(N), LABELS, info), Memory(noise(13), torch.arange(13) % 3, info)
    return Dataset(info=info, train=train, test=test)


@pytest.fixture
def make(dataset, monkeypatch):
    """Batches of a trial whose method has partners or turned images or neither."""

    def build(seed=3, view_seed=None, partners=False, rotated=False, batch_size=12, augment=True, **data):
        monkeypatch.setattr(batches.methods, "partners", lambda ref: partners)
        monkeypatch.setattr(batches.methods, "rotated", lambda ref: rotated)
        trial = TrialConfig(
            data=DataConfig(dataset="noise", **data),
            train=Recipe(batch_size=batch_size, augment=augment),
            student="resnet8",
            method=MethodRef(name="vanilla"),
            seed=seed,
            view_seed=view_seed,
        )
        return Batches(dataset, trial)

    return build


def ways(image):
    """{what was done: the result}: every crop of the padded image, mirrored or not, turned by 0 to 3 right angles."""
    padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)))
    made = {}
    for dy in range(9):
        for dx in range(9):
            crop = padded[:, dy : dy + SIZE, dx : dx + SIZE]
            for flip in (False, True):
                for turn in range(4):
                    seen = np.rot90(crop[:, :, ::-1] if flip else crop, turn, (1, 2))
                    made[np.ascontiguousarray(seen).tobytes()] = (dy, dx, flip, turn)
    assert len(made) == 648
    return made


@pytest.fixture(scope="module")
def done_to(dataset):
    """From pixels and an image's place: (dy, dx, flip, turn); KeyError if they are no view of that image."""
    table = [ways(image) for image in dataset.train.images]

    def look(pixels, index):
        return table[index][pixels.round().to(torch.uint8).contiguous().numpy().tobytes()]

    return look


def epoch_of(source, number, epoch=None):
    """An epoch as one: indices, labels, images of each of the four turns (or of one), partners' images."""
    indices, labels, turns, partners = [], [], [], []
    for batch, partner in source.epoch(epoch or number, number):
        indices.append(batch.indices)
        labels.append(batch.labels)
        turns.append(batch.images.unflatten(0, (-1, len(batch.labels))))
        partners.append(partner)
    joined = None if partners[0] is None else torch.cat(partners)
    return torch.cat(indices), torch.cat(labels), torch.cat(turns, 1), joined


def views_of(source, number, done_to):
    """{image: what was done to it} of an epoch's main views."""
    indices, _, turns, _ = epoch_of(source, number)
    return {i: done_to(pixels, i) for i, pixels in zip(indices.tolist(), turns[0], strict=True)}


def owner(pixels, members, done_to):
    """Which of the members these pixels show, and what was done to it."""
    found = []
    for member in members:
        try:
            found.append((member, done_to(pixels, member)))
        except KeyError:
            continue
    (only,) = found
    return only


class TestOrder:
    def test_every_image_once_in_batches_of_which_the_last_is_smaller(self, make):
        shown = list(make().epoch(1, 1))
        assert [len(batch.labels) for batch, _ in shown] == [12, 12, 12, 4]
        assert [tuple(batch.images.shape) for batch, _ in shown] == [(n, 2, SIZE, SIZE) for n in (12, 12, 12, 4)]
        indices = torch.cat([batch.indices for batch, _ in shown])
        assert sorted(indices.tolist()) == list(range(N))
        assert torch.equal(torch.cat([batch.labels for batch, _ in shown]), LABELS[indices])
        assert all(partner is None for _, partner in shown)

    @pytest.mark.parametrize("batch_size", [1, 40, 64])
    def test_batch_sizes(self, make, batch_size):
        sizes = [len(batch.labels) for batch, _ in make(batch_size=batch_size).epoch(1, 1)]
        assert sizes == ([1] * 40 if batch_size == 1 else [40])

    def test_is_a_function_of_seed_and_epoch(self, make):
        source = make()
        first = epoch_of(source, 1)[0].tolist()
        epoch_of(source, 2)
        assert epoch_of(source, 1)[0].tolist() == epoch_of(make(), 1)[0].tolist() == first
        assert epoch_of(source, 2)[0].tolist() != first
        assert epoch_of(make(seed=4), 1)[0].tolist() != first

    def test_does_not_depend_on_what_the_process_drew_before(self, make):
        torch.manual_seed(1)
        first = epoch_of(make(), 1)
        torch.manual_seed(2)
        np.random.seed(5)  # noqa: NPY002 - the global state is what must not matter
        again = epoch_of(make(), 1)
        assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))

    def test_does_not_depend_on_views_and_batch_size(self, make):
        wanted = epoch_of(make(), 1)[0]
        for other in (make(view_seed=9), make(batch_size=7), make(augment=False)):
            assert torch.equal(epoch_of(other, 1)[0], wanted)

    @pytest.mark.parametrize("extra", [{"partners": True}, {"rotated": True}, {"partners": True, "rotated": True}])
    def test_methods_with_more_images_see_the_same_order_and_main_views(self, make, extra):
        plain, more = epoch_of(make(), 2), epoch_of(make(**extra), 2)
        assert torch.equal(more[0], plain[0])
        assert torch.equal(more[2][0], plain[2][0])

    def test_images_of_the_trial_alone(self, make):
        source = make(fraction=0.5, val_size=8)
        indices = epoch_of(source, 1)[0]
        assert sorted(indices.tolist()) == source.train.tolist()
        assert len(source.train) == 16
        assert not set(indices.tolist()) & set(source.val.tolist())
        assert torch.equal(source.train_labels, LABELS[source.train])

    def test_the_split_is_of_the_subset_seed(self, make):
        one, same, other = (
            make(fraction=0.5, seed=a, subset_seed=b).train.tolist() for a, b in ((1, 0), (2, 0), (1, 1))
        )
        assert one == same != other

    def test_batches_say_the_epoch_and_are_drawn_by_the_number(self, make):
        source = make()
        told = list(source.epoch(1, 7))
        assert {batch.epoch for batch, _ in told} == {1}
        assert torch.equal(torch.cat([batch.images for batch, _ in told]), epoch_of(source, 7)[2][0])


class TestViews:
    def test_are_crops_and_flips_of_their_own_images(self, make, done_to):
        done = views_of(make(), 1, done_to)
        assert {turn for *_, turn in done.values()} == {0}
        assert {flip for _, _, flip, _ in done.values()} == {False, True}

    def test_of_an_image_are_the_same_in_every_trial_with_the_view_seed(self, make, done_to):
        everything = views_of(make(), 2, done_to)
        for other in (make(batch_size=7), make(seed=8, view_seed=3), make(partners=True), make(rotated=True)):
            assert views_of(other, 2, done_to) == everything
        part = views_of(make(fraction=0.5, val_size=8), 2, done_to)
        assert part == {i: everything[i] for i in part}

    @pytest.mark.parametrize("other", [{"seed": 4}, {"view_seed": 4}])
    def test_differ_at_other_view_seeds(self, make, done_to, other):
        first, second = views_of(make(), 1, done_to), views_of(make(**other), 1, done_to)
        assert sum(first[i] == second[i] for i in first) <= 3  # 40 / 162 by chance

    def test_differ_between_epochs(self, make, done_to):
        first, second = (views_of(make(), number, done_to) for number in (1, 2))
        assert sum(first[i] == second[i] for i in first) <= 3

    @pytest.mark.parametrize("rotated", [False, True])
    def test_images_are_channels_last(self, make, rotated):
        batch, _ = next(iter(make(rotated=rotated).epoch(1, 1)))
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)

    def test_without_augmentation_everything_is_plain(self, make, dataset):
        indices, _, turns, partners = epoch_of(make(augment=False, rotated=True, partners=True), 1)
        images = dataset.train.images.float()
        for k in range(4):
            torch.testing.assert_close(turns[k], torch.rot90(images[indices], k, (2, 3)))
        for pixels, i in zip(partners.round(), indices.tolist(), strict=True):
            assert any(torch.equal(pixels, images[j]) for j in range(i % CLASSES, N, CLASSES))


class TestPartners:
    def found(self, make, done_to, number, **fields):
        """[(image, its view, the partner, the partner's view)] of an epoch."""
        source = make(partners=True, **fields)
        views = views_of(source, number, done_to)
        indices, labels, _, partners = epoch_of(source, number)
        rows = []
        for i, label, pixels in zip(indices.tolist(), labels.tolist(), partners, strict=True):
            members = [j for j in source.train.tolist() if j % CLASSES == label]
            rows.append((i, views[i], *owner(pixels, members, done_to)))
        return rows

    def test_are_of_the_same_class_and_the_trials_own_images(self, make, done_to):
        rows = self.found(make, done_to, 1, fraction=0.5, val_size=8)  # `owner` fails for any other image
        assert len(rows) == 16

    def test_have_one_for_each_image_of_each_batch(self, make):
        sizes = [tuple(partner.shape) for _, partner in make(partners=True).epoch(1, 1)]
        assert sizes == [(n, 2, SIZE, SIZE) for n in (12, 12, 12, 4)]

    def test_all_members_are_equally_likely(self, make, done_to):
        counts = np.zeros((N, N), int)
        for number in range(1, 51):
            for i, _, j, _ in self.found(make, done_to, number):
                counts[i, j] += 1
        inside = np.array([counts[i, i % CLASSES :: CLASSES] for i in range(N)])
        assert inside.sum() == counts.sum() == 50 * N
        # 400 cells of 5 expected each, 40 rows of known sum.
        assert stats.chi2.sf(np.sum((inside - 5) ** 2 / 5), 360) > 1e-3

    def test_are_a_function_of_seed_and_epoch(self, make, done_to):
        def pairs(number, **fields):
            return {i: (j, view) for i, _, j, view in self.found(make, done_to, number, **fields)}

        first = pairs(1)
        assert pairs(1) == pairs(1, batch_size=7) == first
        partners = {i: j for i, (j, _) in first.items()}
        assert {i: j for i, (j, _) in pairs(1, view_seed=9).items()} == partners
        assert {i: j for i, (j, _) in pairs(2).items()} != partners
        assert {i: j for i, (j, _) in pairs(1, seed=4).items()} != partners

    def test_an_images_second_view_is_independent_of_its_first(self, make, done_to):
        rows = [row for number in range(1, 11) for row in self.found(make, done_to, number)]
        main = {(number, row[0]): row[1] for number in range(10) for row in rows[number * N : (number + 1) * N]}
        flips = np.zeros((2, 2), int)
        same = 0
        for number in range(10):
            for _, _, j, view in rows[number * N : (number + 1) * N]:
                same += view == main[number, j]
                flips[int(main[number, j][2]), int(view[2])] += 1
        assert same <= 9  # 400 / 162 = 2.5 expected
        assert flips.min() > 60  # of 400 about 100 in each cell

    def test_are_not_turned(self, make, done_to):
        assert {view[3] for *_, view in self.found(make, done_to, 1, rotated=True)} == {0}


class TestTurned:
    def found(self, make, done_to, numbers):
        """[what was done to an image at each of the four turns] over epochs."""
        rows = []
        for number in numbers:
            indices, _, turns, _ = epoch_of(make(rotated=True), number)
            assert turns.shape == (4, N, 2, SIZE, SIZE)
            rows += [[done_to(turns[k, at], i) for k in range(4)] for at, i in enumerate(indices.tolist())]
        return rows

    def test_row_bk_plus_i_is_image_i_turned_k_times(self, make, done_to):
        for batch, _ in make(rotated=True).epoch(1, 1):
            b = len(batch.labels)
            assert len(batch.images) == 4 * b
            for k in range(4):
                for i in range(b):
                    assert done_to(batch.images[b * k + i], int(batch.indices[i]))[3] == k

    def test_the_flip_is_the_same_for_all_four(self, make, done_to):
        rows = self.found(make, done_to, [1, 2])
        assert {len({view[2] for view in row}) for row in rows} == {1}
        assert {row[0][2] for row in rows} == {False, True}

    def test_the_crops_are_uniform_and_independent(self, make, done_to):
        rows = np.array([[view[:2] for view in row] for row in self.found(make, done_to, range(1, 31))])
        for axis in (0, 1):
            for k in range(4):
                counts = np.bincount(rows[:, k, axis], minlength=9)
                assert stats.chisquare(counts).pvalue > 1e-3
                for other in range(k):
                    table = np.bincount(9 * rows[:, k, axis] + rows[:, other, axis], minlength=81).reshape(9, 9)
                    assert stats.chi2_contingency(table).pvalue > 1e-3


class TestPlain:
    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_a_split_in_order_not_augmented(self, make, dataset, monkeypatch, split):
        monkeypatch.setattr(batches, "EVAL_BATCH", 5)
        source = make(fraction=0.5, val_size=8, rotated=True, partners=True)
        shown = list(source.plain(split))
        chosen = {"train": source.train, "val": source.val, "test": torch.arange(13)}[split]
        images, labels = dataset.train.images, dataset.train.labels
        if split == "test":
            images, labels = dataset.test.images, dataset.test.labels
        sizes = {"train": [5, 5, 5, 1], "val": [5, 3], "test": [5, 5, 3]}
        assert [len(batch.labels) for batch in shown] == sizes[split]
        assert {batch.epoch for batch in shown} == {0}
        assert torch.equal(torch.cat([batch.indices for batch in shown]), chosen)
        assert torch.equal(torch.cat([batch.labels for batch in shown]), labels[chosen])
        torch.testing.assert_close(torch.cat([batch.images for batch in shown]), images[chosen].float())

    def test_a_trial_without_validation_images(self, make):
        assert sum(len(batch.images) for batch in make().plain("val")) == 0
