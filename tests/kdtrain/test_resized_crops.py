import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import v2

from kdtrain import resized_crops
from kdtrain.draws import Stream, raw, raw_of

# No box fits into 20 x 400; into 20 x 200 about one of ten does.
SIZES = [(375, 500), (500, 375), (32, 32), (20, 200), (200, 20), (20, 400), (7, 9), (1, 1)]


def noise(height, width):
    """uint8 [3, H, W], channels last in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def torchvision_box(drawn, height, width):
    """What torchvision's own rule makes of our numbers: its calls for random numbers are answered with them."""
    attempts = drawn[1:].reshape(10, 4).astype(np.float64) / 2.0**64
    shapes, places = [], []

    def uniform(self, low, high):
        shapes.append(attempts[len(shapes) // 2, len(shapes) % 2])
        return torch.tensor(float(low) + shapes[-1] * (float(high) - float(low)), dtype=torch.float64)

    def randint(low, high, size):
        places.append(attempts[(len(shapes) - 1) // 2, 2 + len(places)])
        return torch.tensor(low + int(places[-1] * (high - low)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "uniform_", uniform)
        patch.setattr(torch, "randint", randint)
        made = v2.RandomResizedCrop(224).make_params([torch.empty(3, height, width)])
    return made["top"], made["left"], made["height"], made["width"]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_are_those_of_torchvision_given_the_same_numbers(height, width):
    for index in range(100):
        drawn = resized_crops.numbers(3, 5, index)
        assert resized_crops.box(drawn, height, width) == torchvision_box(drawn, height, width)


def test_area_ratio_and_place_are_distributed_as_those_of_torchvision():
    n, (height, width) = 2000, (375, 500)
    ours = np.array([resized_crops.box(resized_crops.numbers(0, 1, index), height, width) for index in range(n)])
    torch.manual_seed(0)
    transform, image = v2.RandomResizedCrop(224), torch.empty(3, height, width)
    theirs = np.array([list(transform.make_params([image]).values()) for _ in range(n)])
    for of in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > 0.001


def test_flips_are_fair_and_say_nothing_about_the_box():
    drawn = [resized_crops.numbers(0, 1, index) for index in range(2000)]
    flips = np.array([resized_crops.flipped(numbers) for numbers in drawn])
    areas = np.array([np.prod(resized_crops.box(numbers, 375, 500)[2:]) for numbers in drawn])
    assert stats.binomtest(int(flips.sum()), 2000).pvalue > 0.001
    assert stats.ks_2samp(areas[flips], areas[~flips]).pvalue > 0.001


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        # round(4/3 * 10) = 13 and (1000 - 13) // 2 = 493, by whichever side is the longer.
        (10, 1000, (0, 493, 10, 13)),
        (1000, 10, (493, 0, 13, 10)),
        # All of an image within the ratios: 1.25 is below 4/3.
        (100, 125, (0, 0, 100, 125)),
    ],
)
def test_the_largest_central_box_if_no_attempt_fits(height, width, box):
    drawn = np.full(41, 2**64 - 1, dtype=np.uint64)  # area 1, ratio 4/3
    assert resized_crops.box(drawn, height, width) == box


def test_the_first_attempt_that_fits_is_taken():
    drawn = np.full((10, 4), 2**64 - 1, dtype=np.uint64)
    drawn[2] = 0, 2**63, 0, 2**63  # area 0.08, ratio 1, the first row, the middle column
    drawn[3] = 0
    drawn = np.concatenate([np.zeros(1, dtype=np.uint64), drawn.ravel()])
    # sqrt(0.08 * 100 * 200) = 40 pixels square; 161 columns to begin at, of which the middle is 80.
    assert resized_crops.box(drawn, 100, 200) == (0, 80, 40, 40)


@pytest.mark.parametrize("flip", [False, True])
def test_apply_is_pils_resizing_of_the_box(flip):
    image, box = noise(60, 90), resized_crops.Box(5, 20, 41, 52)
    got = resized_crops.apply(image, box, flip, 32)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((20, 5, 72, 46)).resize((32, 32), Image.BILINEAR)
    pil = pil.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else pil
    expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1)
    assert got.dtype == torch.uint8
    assert (got.int() - expected.int()).abs().max() <= 1  # both work in fixed point, rounded at other places


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (224, 224), (40, 301), (20, 20)])
@pytest.mark.parametrize(("size", "shorter"), [(224, 256), (32, 37), (64, 73)])  # 36.57 and 73.14 rounded
def test_central_is_torchvisions_resize_and_centre_crop(height, width, size, shorter):
    image = noise(height, width)
    expected = v2.Compose([v2.Resize(shorter), v2.CenterCrop(size)])(image)
    assert torch.equal(resized_crops.central(image, size), expected)


def test_numbers_of_one_image_are_those_far_on_in_its_stream():
    # Word 1 of the counter is 1 + index: as many times 2^64 blocks on.
    whole = np.random.Philox(key=7, counter=[0, 0, int(Stream.PARTNER_VIEWS), 9])
    assert raw_of(7, Stream.PARTNER_VIEWS, 9, 4, 6).tolist() == whole.advance(5 * 2**64).random_raw(6).tolist()


def test_no_seed_epoch_stream_or_image_shares_numbers():
    kinds = [
        (seed, epoch, index, stream) for seed in (0, 1) for epoch in (1, 2) for index in (0, 1) for stream in Stream
    ]
    drawn = [resized_crops.numbers(*kind) for kind in kinds] + [raw(0, Stream.VIEWS, 1, 41)]
    assert len(np.unique(np.concatenate(drawn))) == 41 * len(drawn)
