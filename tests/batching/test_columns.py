"""Rows of different lengths become one tensor, the same as torch's own padding makes."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from shiqrun.batching.columns import pad


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_padding_equals_torchs_in_values_and_type(dtype, shape):
    rng = np.random.default_rng(0)
    arrays = [(100 * rng.normal(size=(n, *shape))).astype(dtype) for n in (3, 1, 0, 7)]
    expected = pad_sequence([torch.from_numpy(a) for a in arrays], True, 9)
    found = pad(arrays, 9)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_padding_may_be_no_number():
    found = pad([np.zeros(1, np.float32), np.zeros(2, np.float32)], float("nan"))
    assert found.isnan().tolist() == [[False, True], [False, False]]
