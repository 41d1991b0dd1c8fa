"""common/shapes.py"""

import pytest
import torch

from qttdm.common.shapes import check_shape


@pytest.mark.parametrize(
    ("shape", "letters", "sizes"),
    [
        ((2, 3, 4), "B L N", {}),
        ((2, 3, 4), "B L N", {"N": 4}),
        ((2, 3, 4), "B L N", {"B": 2, "L": 3, "N": 4}),
        ((0, 4), "B N", {"N": 4}),
        ((5,), "B", {"B": 5, "N": 9}),
        ((), "", {}),
    ],
)
def test_fitting_shapes_pass(shape: tuple[int, ...], letters: str, sizes: dict[str, int]):
    check_shape(torch.zeros(shape), letters, **sizes)


@pytest.mark.parametrize(
    ("shape", "letters", "sizes", "message"),
    [
        ((2, 3), "B L N", {}, r"got \[2, 3\], want \[B, L, N\]"),
        ((2, 3, 4), "B L", {"L": 3}, r"got \[2, 3, 4\], want \[B, 3\]"),
        ((2, 3, 4), "B L N", {"N": 5}, r"got \[2, 3, 4\], want \[B, L, 5\]"),
        ((2, 1), "B N", {"N": 2}, r"got \[2, 1\], want \[B, 2\]"),
        ((1,), "", {}, r"got \[1\], want \[\]"),
    ],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], letters: str, sizes: dict[str, int], message: str):
    with pytest.raises(AssertionError, match=message):
        check_shape(torch.zeros(shape), letters, **sizes)
