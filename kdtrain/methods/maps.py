"""What methods that compare the maps of two networks share."""

import torch.nn.functional as F
from torch import Tensor, nn


def adapted(f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller of their heights: the higher one is averaged down (adaptive pooling), to a square.

    f_s: [B, C_s, H_s, W_s], f_t: [B, C_t, H_t, W_t]; maps of one height are returned as they are, whatever their
    widths.
    """
    height = min(f_s.shape[2], f_t.shape[2])
    return lowered(f_s, height), lowered(f_t, height)


def lowered(f: Tensor, height: int) -> Tensor:
    """A map [B, C, H, W] averaged down to a square of that height (adaptive pooling) if it is higher."""
    return F.adaptive_avg_pool2d(f, height) if f.shape[2] > height else f


class Norm(nn.BatchNorm2d):
    """BatchNorm that normalises one value for each channel, which has no variance, with its running statistics.

    That is a last batch of one image, at 1 x 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`x`: [B, C, H, W]."""
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
