"""`check_shape`: a module's door says which shape it takes, and refuses any other."""

from __future__ import annotations

from torch import Tensor


def check_shape(x: Tensor, letters: str, **sizes: int) -> None:
    """Check that, in `check_shape(x, "B L N", N=6)`, x has as many dimensions as letters, of the sizes given.

    AssertionError otherwise: only our own code can get this wrong.
    """
    names = letters.split()
    want = [sizes.get(name, name) for name in names]
    good = x.dim() == len(names) and all(
        isinstance(size, str) or size == got for size, got in zip(want, x.shape, strict=True)
    )
    assert good, f"got {list(x.shape)}, want [{', '.join(map(str, want))}]"
