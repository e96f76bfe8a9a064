"""Draw, as one picture, what a reducer did to an image layer by layer."""

import cv2
import numpy as np
import torch
from torch import nn

from mmtr.models.preprocessing import turns_to_rgb

from .token_map import GROUP_COLORS, Caption, TokenMap, draw_groups, draw_injected, draw_matches, mosaic

#: Least and greatest width of an image in the picture, in pixels: captions must fit, and files stay small.
WIDTHS = (400, 1024)


def seen_image(preprocessor: nn.Module, image: torch.Tensor) -> np.ndarray:
    """Undo the normalisation of an image that the backbone got: (height, width, 3) uint8 RGB.

    Of more than three channels the first three are shown; of fewer, the first as grey.

    Args:
        preprocessor: The model's data preprocessor, which gets images in BGR.
        image: (C, height, width), normalised.
    """
    image = image.float()
    if getattr(preprocessor, '_enable_normalize', False):
        image = image * preprocessor.std + preprocessor.mean
    converted = turns_to_rgb(preprocessor, len(image))
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    image = image if converted else image.flip(0)
    return image.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy().copy()


def _changing(maps, image):
    """The token maps of one image, without those that equal the one before."""
    found = []
    for layer in sorted(maps):
        new = maps[layer][image]
        if not found or not (
            np.array_equal(new.group, found[-1].group) and np.array_equal(new.stands_for, found[-1].stands_for)
        ):
            found.append(new)
    return found


def _patch_side(image, grid, side):
    # In later stages of a hierarchical backbone a patch covers several patches of the first stage.
    return side * max(1, round(image.shape[0] / (grid[0] * side)))


def fitted(picture: np.ndarray) -> np.ndarray:
    """Resize a picture to a width within ``WIDTHS``; the aspect ratio stays."""
    width = int(np.clip(picture.shape[1], *WIDTHS))
    size = (width, max(1, round(picture.shape[0] * width / picture.shape[1])))
    smaller = width < picture.shape[1]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)


def marked(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Darken an image, (height, width, 3) uint8 RGB, and draw the pixels ``where``, (height, width) bool, in white."""
    return np.where(where[..., None], 255, image // 4).astype(np.uint8)


def group_legend(maps: list[TokenMap]) -> Caption:
    """Build the caption of ``draw_groups``: the colours of the groups that occur in the maps."""
    names = {1: 'its own', 2: 'its own, unique', 0: 'none'}
    found = [i for i in names if any((m.group == i).any() for m in maps)]
    return [(None, 'token:'), *((GROUP_COLORS[i], names[i]) for i in found)]


def token_picture(
    image: np.ndarray, maps: dict[int, list[TokenMap]], patch: int, index: int = 0, max_layers: int = 4
) -> np.ndarray:
    """Draw the token maps of an image as rows of pictures: (height, width, 3) uint8 RGB.

    Args:
        image: (height, width, 3) uint8 RGB.
        maps: Of ``record_token_maps`` or ``token_maps``; not empty.
        patch: Side of a patch of the first stage, in pixels.
        index: Which image of the batch it is.
        max_layers: Rows at most. A row is a layer at which the map changes; if there are more, they are spread
            evenly from the first to the last.
    """
    layers = _changing(maps, index)
    chosen = np.unique(np.linspace(0, len(layers) - 1, min(max_layers, len(layers))).round().astype(int))
    layers = [layers[i] for i in chosen]
    shares = any((m.stands_for.reshape(-1) != np.arange(m.group.size)).any() for m in layers)
    drops = any(m.dropped.any() for m in layers)
    legend = group_legend(layers)
    rows = []
    for m in layers:
        side = _patch_side(image, m.group.shape, patch)
        row = [
            (f'layer {m.layer}: {(m.group > 0).sum()} of {m.group.size} patches keep a token', image),
            (legend, draw_groups(image, m, side)),
        ]
        if shares:
            row.append(('one colour: share a token, that of the dot', draw_matches(image, m, side)))
        left = [(GROUP_COLORS[0], 'dropped'), (None, 'others: mean of each token')]
        row.append((left if drops else 'mean colour of each token', draw_injected(image, m, side)))
        rows.append([(text, fitted(cell)) for text, cell in row])
    return mosaic(rows)
