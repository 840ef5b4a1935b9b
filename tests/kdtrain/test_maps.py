import pytest
import torch

from kdtrain.methods.maps import adapted


def slow_pool(f, n):
    """Mean over rows floor(i H / n) to ceil((i + 1) H / n) and the same columns."""

    def bounds(i, size):
        return i * size // n, -(-(i + 1) * size // n)

    out = torch.zeros(*f.shape[:2], n, n, dtype=f.dtype)
    for i in range(n):
        for j in range(n):
            (top, bottom), (left, right) = bounds(i, f.shape[2]), bounds(j, f.shape[3])
            values = [f[:, :, y, x] for y in range(top, bottom) for x in range(left, right)]
            out[:, :, i, j] = sum(values) / len(values)
    return out


def test_equal_heights_are_left_alone(golden):
    f_s, f_t = adapted(golden.fs, golden.ft)
    assert f_s is golden.fs
    assert f_t is golden.ft


def test_a_higher_map_is_averaged_by_hand():
    # Two by two blocks of 0 ... 15: (0 + 1 + 4 + 5) / 4 and so on.
    high, low = torch.arange(16.0).view(1, 1, 4, 4), torch.zeros(1, 3, 2, 2)
    expected = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])
    torch.testing.assert_close(adapted(high, low)[0], expected)
    torch.testing.assert_close(adapted(low, high)[1], expected)
    assert adapted(high, low)[1] is low
    assert adapted(low, high)[0] is low


@pytest.mark.parametrize(("high", "low"), [(8, 4), (7, 4), (5, 3), (6, 1)])
def test_a_higher_map_equals_slow_loops(golden, high, low):
    f = golden.ftb[:, :, :high, :high]
    small = golden.fs[:, :, :low, :low]
    torch.testing.assert_close(adapted(f, small)[0], slow_pool(f, low))
    torch.testing.assert_close(adapted(small, f)[1], slow_pool(f, low))


def test_only_heights_are_compared(golden):
    wide, square = golden.ftb[:, :, :4], golden.fs  # 4 x 8 and 4 x 4
    assert adapted(wide, square)[0] is wide
    assert adapted(golden.ftb, square[..., :2])[0].shape == (8, 12, 4, 4)


def test_gradients_flow_through_the_average():
    high = torch.zeros(1, 1, 4, 4, requires_grad=True)
    adapted(high, torch.zeros(1, 1, 2, 2))[0].sum().backward()
    torch.testing.assert_close(high.grad, torch.full((1, 1, 4, 4), 0.25))
