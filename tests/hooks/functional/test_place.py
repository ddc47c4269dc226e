"""Place: positions of any part of a sequence, given or counted, and its plain form."""

import pytest
import torch
from dense import dense_pattern, dense_scores, dense_z

from hooks import AttentionSpec
from hooks.functional.attend import attend_full, attend_fused, attend_rows
from hooks.functional.place import Place

DEVICE = torch.device("cpu")


def test_positions_are_counted_or_given():
    counted, keys = Place(query_start=7).positions(slice(2, 5), slice(1, 4), DEVICE)
    assert (counted.tolist(), keys.tolist()) == ([9, 10, 11], [1, 2, 3])
    given = torch.tensor([[3, 5, 9, 9], [0, 1, 2, 4]])
    queries, keys = Place(7, None, given, given[0]).positions(slice(1, 3), slice(0, 2), DEVICE)
    assert (queries.tolist(), keys.tolist()) == ([[5, 9], [1, 2]], [3, 5])


def test_the_plain_form_keeps_what_matters():
    rows, others = torch.tensor([[4, 5], [4, 5]]), torch.tensor([[4, 5], [4, 6]])
    plain = Place(2, torch.ones(2, 3, dtype=torch.bool), rows, others).plain()
    assert plain.key_mask is None
    assert plain.query_positions is not None and plain.query_positions.tolist() == [4, 5]
    assert plain.key_positions is others
    assert plain.query_start == 2
    mask = Place(key_mask=torch.tensor([[1, 0, 1]])).plain().key_mask
    assert mask is not None and mask.tolist() == [[True, False, True]]


@pytest.mark.parametrize("attend", [attend_fused, attend_rows, attend_full])
def test_a_place_says_where_a_chunk_lies(attend):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 2, 8, generator=generator, dtype=torch.float64) for n in (5, 12, 12))
    at = {"query_positions": torch.arange(7, 12) * 3 + 4, "key_positions": torch.arange(12) * 3}
    mask = torch.arange(12) != 8
    spec = AttentionSpec(0.4, window=6, alibi_slopes=(0.5, 0.1))
    rules = {"window": 6, "alibi_slopes": spec.alibi_slopes, "query_start": 7, "key_mask": mask}
    want = dense_z(dense_pattern(dense_scores(q[0], k[0], 0.4, **rules, **at)), v[0])
    place = Place(query_start=7, key_mask=mask[None], **at)
    torch.testing.assert_close(attend(q, k, v, spec, place)[0], want)
    torch.testing.assert_close(attend(q, k, v, spec, query_start=7, key_mask=mask[None], **at)[0], want)
    with pytest.raises(TypeError, match="query_star"):
        attend(q, k, v, spec, query_star=7)
