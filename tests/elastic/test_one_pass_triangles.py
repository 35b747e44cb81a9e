"""Products in bands give what the masked product gives, forwards and backwards."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pliant.elastic.onepass.operators import applied
from pliant.elastic.onepass.triangles import BandedLinear, bands_of


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("leak", [1.0, 0.3])
@pytest.mark.parametrize("biased", [True, False])
def test_bands_are_the_masked_product(blocks: int, leak: float, biased: bool) -> None:
    into, out_of = np.repeat([1, 2, 3, 4], 16), np.tile(np.repeat([1, 2, 3, 4], [16, 20, 28, 64]), blocks)
    bands = bands_of(into, out_of)
    assert bands is not None
    assert len(bands) >= 2 * blocks
    mask = torch.from_numpy(into <= out_of[:, None]).double()
    back = torch.from_numpy(np.where(into == out_of[:, None], 1.0, leak))
    x, w = torch.randn(2, 5, 64, dtype=torch.double), torch.randn(len(out_of), 64, dtype=torch.double)
    b = torch.randn(len(out_of), dtype=torch.double) if biased else None
    given = [tensor.requires_grad_() for tensor in (x, w, b) if tensor is not None]
    made = applied(BandedLinear, x, w, b, mask, None if leak == 1 else back, bands)
    torch.testing.assert_close(made, F.linear(x, w * mask, b))
    grad = torch.randn_like(made)
    found = torch.autograd.grad(made, given, grad)
    plain = torch.autograd.grad(F.linear(x, w * mask, b), given, grad)
    torch.testing.assert_close(found[0], grad @ (w * mask * back))
    torch.testing.assert_close(found[1:], plain[1:])


def test_what_is_no_better_in_bands_is_left_whole() -> None:
    shells = np.repeat([1, 2], 64)
    assert bands_of(shells[::-1], shells) is None  # inputs out of order
    assert bands_of(shells[::8], shells[::8]) is None  # small
    assert bands_of(shells, np.tile([2, 1], 64)) is None  # outputs one by one
    assert bands_of(shells, np.full(128, 2)) is None  # no zeros
