import itertools
import math

import pytest
import torch

from mmtr.ops.diversity import attention_similarity, mean_pairwise_cosine


def mean_over_pairs(vectors):
    """One cosine at a time."""
    cosines = []
    for a, b in itertools.combinations(vectors.double().tolist(), 2):
        length = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
        cosines.append(sum(v * w for v, w in zip(a, b)) / length if length else 0.0)
    return sum(cosines) / len(cosines)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_is_the_mean_over_all_pairs():
    x = random(2, 3, 7, 5) + 0.5
    found = mean_pairwise_cosine(x)
    assert found.shape == (2, 3)
    for b, h in itertools.product(range(2), range(3)):
        assert found[b, h].item() == pytest.approx(mean_over_pairs(x[b, h]), abs=1e-6)


@pytest.mark.parametrize(
    'vectors, expected',
    [
        (torch.ones(9, 4) * torch.arange(1, 10)[:, None], 1.0),  # their length does not matter
        (torch.eye(6), 0.0),
        (torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), -1.0),
        (torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]), 1 / 3),
    ],
)  # nothing is like a vector of zeros
def test_known_cases(vectors, expected):
    assert mean_pairwise_cosine(vectors).item() == pytest.approx(expected, abs=1e-6)


def test_one_vector_makes_no_pair():
    assert mean_pairwise_cosine(torch.ones(2, 1, 4)).isnan().all()


def test_nearly_equal_vectors_are_not_lost_in_rounding():
    x = 1 + 1e-3 * random(2000, 64)
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    expected = (unit @ unit.T).triu(1).sum() / (2000 * 1999 / 2)
    assert 1 - mean_pairwise_cosine(x).item() == pytest.approx(1 - expected.item(), rel=0.01)


@pytest.mark.parametrize('chunk', [1, 4, 256])
@pytest.mark.parametrize('bias', [None, (2, 1, 1, 6), (2, 3, 9, 6)])
def test_attention_maps_of_a_head(bias, chunk):
    q, k = random(2, 3, 9, 8, seed=1), random(2, 3, 6, 8, seed=2)
    bias = None if bias is None else 2 * random(*bias, seed=3)
    found = attention_similarity(q, k, bias, chunk)
    assert found.shape == (2, 3)
    full = torch.zeros(2, 3, 9, 6) if bias is None else bias.expand(2, 3, 9, 6)
    for b, h in itertools.product(range(2), range(3)):
        maps = torch.stack([torch.softmax(k[b, h] @ q[b, h, n] / math.sqrt(8) + full[b, h, n], 0) for n in range(9)])
        assert found[b, h].item() == pytest.approx(mean_over_pairs(maps), abs=1e-6)
