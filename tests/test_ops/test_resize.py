import torch
import torch.nn.functional as F

from mmtr.ops.resize import resize_patches, resize_positions


def weight(distance):
    """Keys' cubic with the parameter -1/2, which timm's models are resized with."""
    d, a = abs(distance), -0.5
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def test_enlarged_patches_get_the_embedding_that_they_had():
    generator = torch.Generator().manual_seed(0)
    kernel, patches = torch.randn(8, 3, 6, 6, generator=generator), torch.randn(5, 3, 6, 6, generator=generator)
    large = F.interpolate(patches, (9, 8), mode='bicubic', antialias=True)
    torch.testing.assert_close(
        F.conv2d(large, resize_patches(kernel, (9, 8))), F.conv2d(patches, kernel), atol=1e-4, rtol=1e-4
    )
    assert resize_patches(kernel, (6, 6)) is kernel


def test_positions_are_interpolated_on_the_grid_and_the_prefix_stays():
    table = torch.randn(1, 2 + 6 * 8, 3, generator=torch.Generator().manual_seed(0))
    out = resize_positions(table, (6, 8), (9, 16), 2)
    assert out.shape == (1, 2 + 9 * 16, 3) and torch.equal(out[:, :2], table[:, :2])
    for row, column in ((3, 4), (4, 11), (5, 8)):  # away from the border
        y, x = (row + 0.5) * 6 / 9 - 0.5, (column + 0.5) * 8 / 16 - 0.5
        expected = sum(weight(y - r) * weight(x - c) * table[0, 2 + r * 8 + c] for r in range(6) for c in range(8))
        torch.testing.assert_close(out[0, 2 + row * 16 + column], expected, atol=1e-5, rtol=1e-4)
    assert resize_positions(table, (6, 8), (6, 8), 2) is table
