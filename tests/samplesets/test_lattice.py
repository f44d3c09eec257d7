"""The abstract value's own arithmetic."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from dpcheck.samplesets.lattice import reshaped

FACTORS = st.lists(st.sampled_from([1, 2, 3, 5]), max_size=5)


@given(st.data(), FACTORS)
def test_a_reshape_of_an_expanded_tensor_is_the_reshape(data: st.DataObject, factors: list[int]) -> None:
    before = data.draw(st.permutations(factors))
    cut = data.draw(st.integers(0, len(factors)))
    after = [math.prod(factors[:cut]), *factors[cut:]]
    varying = [size if data.draw(st.booleans()) else 1 for size in before]
    t = torch.arange(math.prod(varying)).reshape(varying).expand(before)
    assert torch.equal(reshaped(t, after), t.reshape(after))


def test_what_is_constant_stays_small() -> None:
    rows = torch.arange(5).view(5, 1, 1).expand(5, 128, 3072)
    assert reshaped(rows, (640, 3072)).untyped_storage().nbytes() == 640 * 8
    assert reshaped(rows, (5, 128 * 3072)).untyped_storage().nbytes() == 5 * 8
