"""A row of Gumbel noise in plain torch, as drafters and the reference draw it."""

import pytest
import torch

from bench.conftest import shapes
from wanspec_kernels import noise


@pytest.mark.parametrize("vocab", shapes([(4096,), (32_000,)], [(128_256,), (151_936,)]))
def test_gumbel_row(timed, device, vocab):
    position, seed = (torch.tensor(n, device=device) for n in (100, 7))
    row = noise.gumbel_row(vocab, position, seed)
    tokens = torch.arange(vocab, device=device)
    words = noise.words(tokens, position, seed, noise.Stream.TOKEN).double()
    plain = words >= noise.REFINE_BELOW
    expected = -torch.log(-torch.log1p(-(words + 0.5) * 2.0**-32))
    assert torch.allclose(row.double()[plain], expected[plain], atol=2e-6)
    timed(lambda: noise.gumbel_row(vocab, position, seed))
