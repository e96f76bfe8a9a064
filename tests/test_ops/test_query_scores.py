from fractions import Fraction

import pytest
import torch

from mmtr.ops.query_scores import highest, within_regions


@pytest.mark.parametrize('grid, region', [((4, 6), 2), ((5, 7), 3), ((6, 3), 8), ((3, 5), 1)])
@pytest.mark.parametrize('gone', [0, 6])
def test_rank_within_regions_region_by_region(grid, region, gone):
    generator = torch.Generator().manual_seed(0)
    patches = grid[0] * grid[1]
    index = torch.stack([torch.randperm(patches, generator=generator)[gone:].sort().values for _ in range(2)])
    scores = torch.randn(index.shape, generator=generator)
    found = within_regions(scores, index, grid, region)

    def of(position):
        return position // grid[1] // region, position % grid[1] // region

    for image in range(2):
        rank = {}
        for slot, position in enumerate(index[image].tolist()):
            size = sum(of(other) == of(position) for other in range(patches))
            higher = sum(
                of(other) == of(position) and scores[image, at] > scores[image, slot]
                for at, other in enumerate(index[image].tolist())
            )
            rank[slot] = Fraction(2 * int(higher) + 1, size), -scores[image, slot]
        assert found[image].argsort(descending=True).tolist() == sorted(rank, key=rank.get)


def test_each_region_keeps_its_highest_and_the_same_share():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 96, generator=generator)
    scores[0, :48] += 100  # without regions nothing below would be left
    kept = highest(within_regions(scores, torch.arange(96).unsqueeze(0), (8, 12), 4), 18)[0].tolist()
    for top in (0, 4):
        for left in (0, 4, 8):
            region = [row * 12 + column for row in range(top, top + 4) for column in range(left, left + 4)]
            assert set(kept) & set(region) == set(sorted(region, key=lambda p: -scores[0, p])[:3])
