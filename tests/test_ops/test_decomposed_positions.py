import pytest
import torch

from mmtr.ops.attention import attention, attention_weights
from mmtr.ops.decomposed_positions import with_positions
from mmtr.ops.resize import resize_differences

HEADS, DIM, GRID = 2, 6, (3, 5)


def drawn(count, batch=2):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, batch, HEADS, count, DIM, generator=generator)
    return q, k, tuple(torch.randn(2 * n - 1, DIM, generator=generator) for n in GRID)


def pairwise(q, k, tables, index):
    """The logits of one image, pair by pair of tokens."""
    (height, width), logits = GRID, torch.zeros(HEADS, len(index), len(index))
    places = [divmod(int(n), width) if n < height * width else None for n in index]
    for h, i, j in ((h, i, j) for h in range(HEADS) for i in range(len(index)) for j in range(len(index))):
        logits[h, i, j] = q[h, i] @ k[h, j] / DIM**0.5
        if places[i] and places[j]:
            for table, n, a, b in zip(tables, GRID, places[i], places[j]):
                logits[h, i, j] += q[h, i] @ table[a - b + n - 1]
    return logits


@pytest.mark.parametrize(
    'index',
    [None, [[4, 0, 14, 7, 7]], [[0, 1, 13, 15], [15, 15, 3, 9]]],
    ids=['the whole grid', 'the same of both', 'some without a position'],
)
def test_products_are_the_logits_of_each_pair(index):
    given = None if index is None else torch.tensor(index)
    each = torch.arange(15).expand(2, -1) if index is None else given.expand(2, -1)
    q, k, tables = drawn(each.shape[1])
    longer, keys = with_positions(q, k, tables, GRID, given)
    assert longer.shape == keys.shape == (2, HEADS, each.shape[1], 16)
    expected = torch.stack([pairwise(*image, tables, at) for *image, at in zip(q, k, each)])
    torch.testing.assert_close(longer @ keys.transpose(2, 3) / 16**0.5, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention_weights(longer, keys), expected.softmax(-1), atol=1e-6, rtol=1e-5)
    v = torch.randn(2, HEADS, each.shape[1], DIM)
    for backend in ('sdpa', 'math'):
        torch.testing.assert_close(attention(longer, keys, v, backend), expected.softmax(-1) @ v, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_the_dtype_stays(dtype):
    q, k, tables = drawn(15)
    for each in (tables, tuple(table.to(dtype) for table in tables)):
        assert [t.dtype for t in with_positions(q.to(dtype), k.to(dtype), each, GRID)] == [dtype] * 2


@pytest.mark.parametrize('old, new', [(3, 7), (7, 3), (1, 4), (4, 4)])
def test_differences_are_resized_linearly(old, new):
    table = torch.randn(2 * old - 1, DIM)
    found = resize_differences(table, new)
    assert len(found) == 2 * new - 1
    for i, row in enumerate(found):
        at = min(max((i + 0.5) * len(table) / len(found) - 0.5, 0), len(table) - 1)
        low = int(at)
        high = min(low + 1, len(table) - 1)
        torch.testing.assert_close(row, table[low] * (1 - at + low) + table[high] * (at - low))
