"""What is not finite is refused with the first place where it is."""

import pytest
import torch

from hooks.errors import InputError
from interp.common.finite import check_finite


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_first_place_is_named(bad, dtype):
    x = torch.zeros(7, 3, 5, dtype=dtype)
    check_finite(q=x, v=None)
    x[4, 2, 1] = x[6, 0, 0] = bad
    with pytest.raises(InputError, match=r"^k holds NaN or infinity, first at row 4, head 2: nothing .* bfloat16$"):
        check_finite(q=torch.ones(2, 2), k=x)
    with pytest.raises(InputError, match=r"^layer 3: k holds NaN or infinity, first at position 6: nothing"):
        check_finite(rows="position", of="layer 3: ", k=x[:, 0])
