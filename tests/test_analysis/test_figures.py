import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from mmtr.visualization.layers import COLORS, FIGURES, draw_layers


def layers(**lines):
    return {
        name: dict(layers={quantity: values for *_, quantities in FIGURES.values() for quantity in quantities})
        for name, values in lines.items()
    }


def seen(path):
    """How many pixels of the axes, legend left out, have the colour of each line."""
    pixels = np.asarray(Image.open(path).convert('RGB')).astype(int)
    pixels = pixels[:, : int(0.7 * pixels.shape[1])]
    return [int((np.abs(pixels - 255 * np.array(to_rgb(color))).sum(-1) < 30).sum()) for color in COLORS[1:]]


@pytest.mark.parametrize('count', [2, 4])
def test_lines_that_coincide_are_all_seen(tmp_path, count):
    same = [0.2, 0.5, 0.4, 0.7, 0.6, 0.9]
    apart = [value + 5 for value in same]
    paths = draw_layers(layers(plain=apart, **{f'method {i}': same for i in range(count)}), tmp_path)
    for path in paths:
        found = seen(path)[:count]
        assert min(found) > 0.4 * max(found) > 20, (path.name, found)


def test_a_line_alone_is_unbroken_and_layers_without_a_number_are_left_out(tmp_path):
    path = draw_layers(layers(plain=[0.1] * 6, other=[0.5, 0.5, math.nan, 0.5, 0.5, 0.5]), tmp_path)[0]
    pixels = np.asarray(Image.open(path).convert('RGB')).astype(int)
    row = (np.abs(pixels - 255 * np.array(to_rgb(COLORS[1]))).sum(-1) < 60)[:, : int(0.7 * pixels.shape[1])]
    starts = np.diff(row.any(0).astype(int)) == 1
    assert starts.sum() == 2, 'from layer 0 to 1, and from 3 to 5'
