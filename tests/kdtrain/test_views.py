import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from scipy import stats

from kdtrain import views
from kdtrain.draws import Stream

CPU = torch.device("cpu")
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def images(n=12, channels=3, size=32, seed=0):
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (n, channels, size, size), dtype=np.uint8))
    return pixels.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_apply_equals_torchvision_image_by_image(channels, size):
    mean, std = MEAN[:channels], STD[:channels]
    pixels = images(channels=channels, size=size)
    drawn = views.draw(3, 5, len(pixels), 32, CPU)
    indices = torch.tensor([7, 0, 11, 3, 3])
    got = views.apply(pixels, indices, drawn, mean, std)
    for row, i in zip(got, indices, strict=True):
        image = TF.pad(pixels[i], 4)
        image = TF.crop(image, int(drawn.dy[i]), int(drawn.dx[i]), size, size)
        image = TF.hflip(image) if drawn.flip[i] else image
        torch.testing.assert_close(row, TF.normalize(image.float() / 255, mean, std), rtol=0, atol=2e-6)


def test_every_offset_with_and_without_flip():
    pixels = images(n=162)
    cases = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2))
    drawn = views.Views(cases[:, 0], cases[:, 1], cases[:, 2].bool())
    padded = TF.pad(pixels, 4)
    got = views.apply(pixels, torch.arange(162), drawn, (0.0,) * 3, (1 / 255,) * 3)
    for i, (y, x, flip) in enumerate(cases.tolist()):
        crop = padded[i, :, y : y + 32, x : x + 32]
        torch.testing.assert_close(got[i], (crop.flip(2) if flip else crop).float(), rtol=0, atol=1e-4)


def test_padding_is_black_before_normalisation():
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    corner = views.Views(torch.tensor([0]), torch.tensor([0]), torch.tensor([False]))
    got = views.apply(white, torch.tensor([0]), corner, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    # (0 - 0.5) / 0.25 in the first four rows and columns, (1 - 0.5) / 0.25 elsewhere.
    expected = torch.tensor([[-2.0] * 5] * 4 + [[-2.0] * 4 + [2.0]])
    torch.testing.assert_close(got[0, 0, :5, :5], expected)


def test_plain_equals_torchvision():
    pixels = images()
    got = views.plain(pixels, torch.tensor([4, 1]), MEAN, STD)
    expected = TF.normalize(pixels[[4, 1]].float() / 255, MEAN, STD)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


def test_the_centre_view_is_the_plain_image():
    pixels = images()
    centre = views.Views(torch.full((12,), 4), torch.full((12,), 4), torch.zeros(12, dtype=torch.bool))
    indices = torch.arange(12)
    got = views.apply(pixels, indices, centre, MEAN, STD)
    assert torch.equal(got, views.plain(pixels, indices, MEAN, STD))


def test_batches_are_channels_last_float32():
    pixels, indices = images(), torch.tensor([2, 5])
    augmented = views.apply(pixels, indices, views.draw(0, 1, 12, 32, CPU), MEAN, STD)
    for batch in (augmented, views.plain(pixels, indices, MEAN, STD)):
        assert batch.dtype == torch.float32
        assert batch.shape == (2, 3, 32, 32)
        assert batch.is_contiguous(memory_format=torch.channels_last)


def test_an_image_does_not_depend_on_its_batch():
    pixels, drawn = images(), views.draw(9, 2, 12, 32, CPU)
    together = views.apply(pixels, torch.tensor([8, 2, 5]), drawn, MEAN, STD)
    alone = views.apply(pixels, torch.tensor([5]), drawn, MEAN, STD)
    assert torch.equal(together[2], alone[0])


def test_evaluation_in_inference_mode_leaves_training_possible():
    pixels, indices = images(channels=2), torch.tensor([0, 1])
    with torch.inference_mode():
        views.plain(pixels, indices, (0.1, 0.2), (0.3, 0.4))
    weight = torch.ones(1, 2, 1, 1, requires_grad=True)
    batch = views.apply(pixels, indices, views.draw(0, 1, 12, 32, CPU), (0.1, 0.2), (0.3, 0.4))
    torch.nn.functional.conv2d(batch, weight).sum().backward()
    torch.testing.assert_close(weight.grad.flatten(), batch.sum((0, 2, 3)))


def test_images_in_another_memory_order_are_refused():
    with pytest.raises(ValueError, match="images must be channels last in memory, but got strides"):
        views.plain(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]), MEAN, STD)


def test_draw_is_repeatable_and_independent_of_n():
    few, many = views.draw(1, 7, 10, 32, CPU), views.draw(1, 7, 1000, 32, CPU)
    for short, long in zip(few, many, strict=True):
        assert torch.equal(short, long[:10])


def test_draw_is_the_documented_stream():
    raw = np.random.Philox(key=1, counter=[0, 0, 0, 7]).random_raw(30).reshape(10, 3)
    drawn = views.draw(1, 7, 10, 32, CPU)
    assert drawn.dy.tolist() == [(int(x) >> 32) * 9 >> 32 for x in raw[:, 0]]
    assert drawn.dx.tolist() == [(int(x) >> 32) * 9 >> 32 for x in raw[:, 1]]
    assert drawn.flip.tolist() == [int(x) >= 2**63 for x in raw[:, 2]]


def test_streams_differ():
    others = [views.draw(1, 7, 500, 32, CPU, stream) for stream in (Stream.PARTNER_VIEWS, Stream.TURNED_90)]
    first = views.draw(1, 7, 500, 32, CPU)
    assert torch.equal(first.dy, views.draw(1, 7, 500, 32, CPU, Stream.VIEWS).dy)
    for other in others:
        assert not torch.equal(first.dy, other.dy)
        assert not torch.equal(first.flip, other.flip)
    assert not torch.equal(others[0].dx, others[1].dx)


def test_plain_of_no_images():
    assert views.plain(images(), torch.zeros(0, dtype=torch.int64), MEAN, STD).shape == (0, 3, 32, 32)


def test_epochs_and_seeds_differ_and_do_not_overlap():
    # A stream that was merely shifted between epochs would repeat rows.
    raw = {
        (seed, epoch): np.random.Philox(key=seed, counter=[0, 0, 0, epoch]).random_raw(3000)
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(np.unique(np.concatenate(list(raw.values())))) == 6 * 3000
    first, second, other = (
        views.draw(0, 1, 500, 32, CPU),
        views.draw(0, 2, 500, 32, CPU),
        views.draw(1, 1, 500, 32, CPU),
    )
    assert not torch.equal(first.dy, second.dy)
    assert not torch.equal(first.dy, other.dy)


def test_offsets_and_flips_are_uniform_and_independent():
    n = 81_000
    drawn = views.draw(0, 1, n, 32, CPU)
    cells = (drawn.dy * 9 + drawn.dx) * 2 + drawn.flip
    counts = np.bincount(cells.numpy(), minlength=162)
    assert len(counts) == 162
    # A fixed seed, so the test cannot fail by chance; 1e-3 is far from what a biased draw gives.
    assert stats.chisquare(counts).pvalue > 1e-3
