import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmseg.models import SegDataPreProcessor

from mmtr.visualization import (
    TokenMap,
    draw_injected,
    draw_matches,
    record_token_maps,
    seen_image,
    token_maps,
    token_picture,
)
from mmtr.visualization.token_map import GROUP_COLORS
from tests.test_reducers.test_contract import every_reducer, images
from tests.test_reducers.test_contract import vit as backbone

CAPTION, GAP = 26, 6


def noise(height=80, width=112, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cells(picture, columns, rows):
    """The pictures of a mosaic without captions."""
    height, width = (picture.shape[0] + GAP) // rows, (picture.shape[1] + GAP) // columns
    return [
        [
            picture[r * height + CAPTION : (r + 1) * height - GAP, c * width : (c + 1) * width - GAP]
            for c in range(columns)
        ]
        for r in range(rows)
    ]


@every_reducer
def test_every_method_has_pictures(cfg):
    maps = token_maps(backbone(cfg), images())
    picture = token_picture(noise(), maps, patch=16, index=1, max_layers=1)
    assert picture.dtype == np.uint8
    drawn, columns = None, (picture.shape[1] + GAP) // (400 + GAP)
    assert picture.shape == (CAPTION + 286, columns * (400 + GAP) - GAP, 3) and columns in (3, 4)
    image, *drawn = cells(picture, columns, 1)[0]
    for cell in drawn:
        assert cell.shape == image.shape == (286, 400, 3)
        assert not np.array_equal(cell, image)


@pytest.mark.parametrize('channels', [1, 2, 4, 7])
def test_of_other_images_than_colour_ones_three_channels_are_shown(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    preprocessor = SegDataPreProcessor(mean=[50.0] * channels, std=[7.0] * channels, bgr_to_rgb=True, size=(5, 6))
    seen = preprocessor(dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)], data_samples=None))['inputs'][0]
    shown = image[..., 2::-1] if channels > 2 else np.repeat(image[..., :1], 3, 2)
    assert np.array_equal(seen_image(preprocessor, seen), shown)


def token_map(layer, group, stands_for):
    return TokenMap(layer, np.array(group), np.array(stands_for))


def test_a_row_is_a_layer_where_the_map_changes():
    merged = [token_map(i, [[1, 1, 0]], [[0, 1, 0]]) for i in range(3)]
    other = [token_map(i, [[1, 0, 0]], [[0, 0, 0]]) for i in range(3, 5)]
    maps = {m.layer: [m] for m in merged + other}
    one, two = (token_picture(noise(32, 96), {i: maps[i] for i in layers}, 32) for layers in ((0, 1, 2), (0, 2, 3, 4)))
    assert two.shape[0] == 2 * one.shape[0] + GAP
    assert np.array_equal(two[: one.shape[0]], one)


def test_the_map_is_of_the_image_that_is_asked_for():
    one, other = token_map(0, [[1, 1, 0]], [[0, 1, 0]]), token_map(0, [[1, 0, 0]], [[0, 0, 0]])
    image = noise(32, 96)
    assert np.array_equal(token_picture(image, {0: [one, other]}, 32, index=1), token_picture(image, {0: [other]}, 32))


def test_patches_of_later_stages_are_larger():
    merged, halved = token_map(0, [[1, 0] * 4] * 4, np.zeros((4, 8), int)), token_map(0, [[1, 0]], [[0, 0]])
    tinted = [cells(token_picture(noise(32, 64), {0: [m]}, 8), 4, 1)[0][1] for m in (merged, halved)]
    image = cells(token_picture(noise(32, 64), {0: [merged]}, 8), 4, 1)[0][0]
    own = 0.4 * image.mean(-1, keepdims=True) + 0.6 * GROUP_COLORS[1]
    grey = [(np.abs(cell - own) < 1).all(-1) for cell in tinted]
    assert grey[0][:, :50].all() and not grey[0][:, 50:100].any() and grey[0][:, 100:150].all()
    assert grey[1][:, :200].all() and not grey[1][:, 200:].any()


def test_rows_are_spread_from_the_first_to_the_last_layer():
    maps = {i: [token_map(i, [[int(p == i) for p in range(7)]], [[i] * 7])] for i in range(7)}
    picture = token_picture(noise(32, 224), maps, 32, max_layers=3)
    alone = [token_picture(noise(32, 224), {i: maps[i]}, 32) for i in (0, 3, 6)]
    height = alone[0].shape[0]
    for row, expected in enumerate(alone):
        assert np.array_equal(picture[row * (height + GAP) :][:height], expected)


def shares(stands_for):
    """``draw_matches`` of a black image, patches of 12 pixels: what is inside of the patches' lines, by patch."""
    grid = np.array(stands_for)
    drawn = draw_matches(
        np.zeros((12 * grid.shape[0], 12 * grid.shape[1], 3), np.uint8), TokenMap(0, np.ones_like(grid), grid), 12
    )
    return drawn, [
        [drawn[12 * r + 2 : 12 * r + 4, 12 * c + 2 : 12 * c + 4] for c in range(grid.shape[1])]
        for r in range(grid.shape[0])
    ]


def test_patches_of_one_token_have_one_colour_and_touching_ones_another():
    # Every token of a grid of 12x16 stands for two patches, beside each other.
    grid = np.arange(12 * 16).reshape(12, 16) // 2 * 2
    _, patches = shares(grid)
    color = np.array([[patch.reshape(-1, 3).mean(0) for patch in row] for row in patches])
    assert all(patch.std((0, 1)).max() == 0 for row in patches for patch in row)
    assert (color[:, ::2] == color[:, 1::2]).all() and len({tuple(c) for row in color for c in row}) > 20
    for row in range(12):
        for column in range(0, 16, 2):
            for r, c in ((row, column + 2), (row + 1, column), (row + 1, column + 2), (row + 1, column - 2)):
                if r < 12 and 0 <= c < 16:
                    assert np.abs(color[row, column] - color[r, c]).sum() > 80


def test_a_token_of_one_patch_is_grey_and_one_of_many_has_a_dot_and_a_line_around_them():
    drawn, patches = shares([[1, 1, 2, 1]])
    assert (patches[0][2] == 0).all() and (patches[0][0] == patches[0][3]).all() and patches[0][0].max() > 50
    dots = [(drawn[6, 12 * c + 6] == 255).all() for c in range(4)]
    assert dots == [False, True, False, False]
    assert (drawn[1:-1, 24] == 0).all() and (drawn[1:-1, 36] == 0).all() and (drawn[1:-1, 12] != 0).any(-1).all()


def test_captions_fit_and_name_the_colours_that_are_there():
    unique = token_map(0, [[1, 2, 0]], [[0, 1, 0]])
    picture = token_picture(noise(32, 96), {0: [unique]}, 32)
    bars = [picture[:CAPTION, c * 406 : c * 406 + 400] for c in range(4)]
    assert all((bar[:, -4:] == 255).all() and (bar < 128).any() for bar in bars)
    for color in GROUP_COLORS:
        assert (bars[1] == color).all(-1).sum() > 100
    two = token_map(0, [[1, 1, 0]], [[0, 1, 0]])
    legend = token_picture(noise(32, 96), {0: [two]}, 32)[:CAPTION, 406:806]
    assert not (legend == GROUP_COLORS[2]).all(-1).any()


def test_dropped_patches_are_teal_and_others_their_mean():
    image = noise(32, 96)
    drawn = draw_injected(image, token_map(0, [[0, 1, 0]], [[0, 1, 1]]), 32)
    assert (drawn[:, :32] == GROUP_COLORS[0]).all()
    assert (drawn[:, 32:] == image[:, 32:].reshape(-1, 3).mean(0).astype(np.uint8)).all()


@pytest.mark.parametrize(
    'preprocessor',
    [
        SegDataPreProcessor(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True),
        SegDataPreProcessor(mean=[103.5, 116.3, 123.7], std=[1.0, 1.0, 1.0]),
        SegDataPreProcessor(),
        DetDataPreprocessor(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True),
    ],
    ids=['rgb', 'bgr', 'as it is', 'mmdet'],
)
def test_an_image_is_seen_as_it_was_before_normalisation(preprocessor):
    rgb = noise()
    bgr = torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1)
    inputs = preprocessor(dict(inputs=[bgr]))['inputs'][0]
    assert np.array_equal(seen_image(preprocessor, inputs), rgb)


def test_each_forward_is_recorded_with_its_images():
    model = backbone(dict(type='ToMe', mode='progressive'))
    first, second = images(1), images(2, 48, 64)
    reducer = model.token_reducer
    with record_token_maps(model) as runs, torch.no_grad():
        model(first), model(second)
    model(first)
    assert [len(runs), len(runs[0][1][0]), len(runs[1][1][0])] == [2, 1, 2]
    assert runs[0][0] is first and runs[1][0] is second
    assert runs[1][1][0][0].group.shape == (3, 4)
    assert model.token_reducer is reducer
