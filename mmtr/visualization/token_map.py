"""Pictures of what a reducer does to the patches of an image (Token Adapter, Fig. 5)."""
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import nn

from mmtr.reducers.observer import Observer, reducer_of

#: RGB of normal, representative and unique patches.
GROUP_COLORS = np.array([[0, 128, 128], [160, 160, 160], [255, 140, 0]], np.uint8)


@dataclass(frozen=True)
class TokenMap:
    """What happened to the patches of one image by a certain layer.

    Args:
        layer: Counted from 0.
        group: (H, W) 0 normal, 1 representative, 2 unique.
        stands_for: (H, W) raster position of the patch whose token stands for each patch.
    """
    layer: int
    group: np.ndarray
    stands_for: np.ndarray

    @property
    def dropped(self) -> np.ndarray:
        """(H, W) whether no token stands for a patch any more: it is normal, and yet merged into no other."""
        own = np.arange(self.group.size).reshape(self.group.shape)
        return (self.group == 0) & (self.stands_for == own)


class _Recorder(Observer):
    """Notes the token map that each layer computes on, in the last of ``runs``."""

    def __init__(self, inner, runs):
        super().__init__(inner)
        self.runs = runs

    def before_layer(self, i, tokens):
        return self._note(i, self.inner.before_layer(i, tokens))

    def between(self, i, tokens):
        return self._note(i, self.inner.between(i, tokens))

    def _note(self, i, tokens):
        found = self.inner.token_map(tokens)
        if found is not None:
            self.runs[-1][1][i] = [TokenMap(i, *(t.reshape(tokens.grid).cpu().numpy() for t in pair))
                                   for pair in zip(*found)]
        return tokens


@contextmanager
def record_token_maps(backbone: nn.Module):
    """Context that yields a list; each forward of ``backbone`` adds its images and {layer: one map an image}."""
    runs: list[tuple[torch.Tensor, dict[int, list[TokenMap]]]] = []
    begin = backbone.register_forward_pre_hook(lambda _, args: runs.append((args[0], {})))
    try:
        with reducer_of(backbone, _Recorder(backbone.token_reducer, runs)):
            yield runs
    finally:
        begin.remove()


@torch.no_grad()
def token_maps(backbone: nn.Module, images: torch.Tensor) -> dict[int, list[TokenMap]]:
    """Token maps of a batch, (B, 3, height, width) as the backbone takes it: layer -> one an image."""
    with record_token_maps(backbone) as runs:
        backbone(images)
    return runs[-1][1]


def _cells(grid, patch, shape):
    """(height, width) raster position of the patch that each pixel is in."""
    rows, columns = (np.minimum(np.arange(n) // patch, g - 1) for n, g in zip(shape, grid))
    return rows[:, None] * grid[1] + columns[None]


def draw_groups(image: np.ndarray, token_map: TokenMap, patch: int) -> np.ndarray:
    """The image with its patches tinted by group: teal normal, grey representative, orange unique.

    Args:
        image: (height, width, 3) uint8 RGB.
        patch: Side of a patch, in pixels.
    """
    group = token_map.group.reshape(-1)[_cells(token_map.group.shape, patch, image.shape)]
    return (0.45 * image + 0.55 * GROUP_COLORS[group]).astype(np.uint8)


def draw_matches(image: np.ndarray, token_map: TokenMap, patch: int) -> np.ndarray:
    """The image with a border around every patch, of one colour for all that one token stands for."""
    hues = np.random.default_rng(0).permutation(180)
    counts = np.bincount(token_map.stands_for.reshape(-1), minlength=token_map.group.size)
    out = image.copy()
    for position, target in enumerate(token_map.stands_for.reshape(-1)):
        if counts[target] == 1:
            continue
        color = cv2.cvtColor(np.uint8([[[hues[target % 180], 230, 255]]]), cv2.COLOR_HSV2RGB)[0, 0].tolist()
        row, column = divmod(position, token_map.group.shape[1])
        top, left = row * patch, column * patch
        bottom, right = min(top + patch, image.shape[0]) - 1, min(left + patch, image.shape[1]) - 1
        cv2.rectangle(out, (left, top), (right, bottom), color, max(1, patch // 10))
    return out


def draw_injected(image: np.ndarray, token_map: TokenMap, patch: int) -> np.ndarray:
    """Each patch in the mean colour of all patches that the same token stands for; dropped ones teal."""
    cells = _cells(token_map.group.shape, patch, image.shape)
    owner = token_map.stands_for.reshape(-1)[cells].reshape(-1)
    count = np.maximum(np.bincount(owner, minlength=token_map.group.size), 1)
    mean = np.stack([np.bincount(owner, image[..., c].reshape(-1), minlength=token_map.group.size) / count
                     for c in range(3)], 1)
    dropped = token_map.dropped.reshape(-1)[cells]
    return np.where(dropped[..., None], GROUP_COLORS[0], mean[owner].reshape(image.shape)).astype(np.uint8)


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture with a line of text above it."""
    bar = np.full((26, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([bar, picture])


def mosaic(rows: list[list[tuple[str, np.ndarray]]], gap: int = 6) -> np.ndarray:
    """Captioned pictures of one size as one picture, row by row."""
    lines = []
    for row in rows:
        pictures = [captioned(picture, text) for text, picture in row]
        space = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
        lines.append(np.hstack([part for p in pictures for part in (p, space)][:-1]))
        lines.append(np.full((gap, lines[0].shape[1], 3), 255, np.uint8))
    return np.vstack(lines[:-1])
