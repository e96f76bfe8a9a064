import pytest
import torch
import torch.nn.functional as F

from mmtr.ops.pooling import average_pool, cell_centres, upsample

GRIDS = pytest.mark.parametrize(
    'grid, cells',
    [((6, 9), (3, 3)), ((7, 5), (5, 3)), ((23, 30), (12, 15)), ((4, 6), (1, 1)), ((5, 8), (5, 3)), ((1, 3), (1, 2))],
)


@GRIDS
def test_pooling_and_upsampling_are_torchs(grid, cells):
    x = torch.randn(2, grid[0] * grid[1], 8, generator=torch.Generator().manual_seed(0))
    pooled = F.adaptive_avg_pool2d(x.transpose(1, 2).unflatten(2, grid), cells)
    torch.testing.assert_close(average_pool(x, grid, cells), pooled.flatten(2).transpose(1, 2))
    up = F.interpolate(pooled, grid, mode='bilinear', align_corners=False)
    torch.testing.assert_close(upsample(average_pool(x, grid, cells), cells, grid), up.flatten(2).transpose(1, 2))


@GRIDS
def test_the_centre_of_a_cell_is_in_it(grid, cells):
    for cell, position in enumerate(cell_centres(grid, cells, 'cpu').tolist()):
        (row, column), (i, j) = divmod(position, grid[1]), divmod(cell, cells[1])
        assert i * grid[0] // cells[0] <= row < -(-(i + 1) * grid[0] // cells[0])
        assert j * grid[1] // cells[1] <= column < -(-(j + 1) * grid[1] // cells[1])
    assert cell_centres((2, 6), (2, 2), 'cpu').tolist() == [1, 4, 7, 10]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_does_not_round_the_residual_stream(dtype):
    x = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast('cpu', dtype):
        assert torch.equal(average_pool(x, (5, 6), (3, 4)), average_pool(x, (5, 6), (3, 4)).float())
        torch.testing.assert_close(upsample(average_pool(x, (5, 6), (5, 6)), (5, 6), (5, 6)), x)
    assert average_pool(x.to(dtype), (5, 6), (3, 4)).dtype == dtype
