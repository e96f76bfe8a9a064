"""Record and draw what a reducer does to the patches of an image (Token Adapter, Fig. 5)."""

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional, Union

import cv2
import numpy as np
import torch
from torch import nn

from mmtr.reducers.observer import Observer, reducer_of

#: RGB of normal, representative and unique patches.
GROUP_COLORS = np.array([[0, 120, 130], [225, 225, 225], [255, 140, 0]], np.uint8)
#: RGB of tokens that stand for several patches: twelve hues, each bright, pale and dark.
TOKEN_COLORS = (
    np.array(
        [
            colorsys.hsv_to_rgb(hue / 12, saturation, value)
            for saturation, value in ((1, 1), (0.45, 1), (1, 0.55))
            for hue in range(12)
        ]
    )
    * 255
)
#: Two colours are easy to tell apart if the differences of their channels sum to at least this.
FAR = 250.0


@dataclass(frozen=True)
class TokenMap:
    """State of the patches of one image in one layer.

    Args:
        layer: Index of the layer, from 0.
        group: Group of each patch, (H, W): 0 normal, 1 representative, 2 unique.
        stands_for: For each patch the raster position of the patch whose token stands for it, (H, W).
    """

    layer: int
    group: np.ndarray
    stands_for: np.ndarray

    @property
    def dropped(self) -> np.ndarray:
        """Patches for which no token stands any more, (H, W) bool: they are normal, but not merged into another."""
        own = np.arange(self.group.size).reshape(self.group.shape)
        return (self.group == 0) & (self.stands_for == own)


class _Recorder(Observer):
    """Records the token map of each layer in the last entry of ``runs``."""

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
            self.runs[-1][1][i] = [
                TokenMap(i, *(t.reshape(tokens.grid).cpu().numpy() for t in pair)) for pair in zip(*found)
            ]
        return tokens


@contextmanager
def record_token_maps(backbone: nn.Module) -> Iterator[list[tuple[torch.Tensor, dict[int, list[TokenMap]]]]]:
    """Record the token maps of each forward pass of ``backbone`` in a context.

    Yields:
        A list, to which each forward pass appends (its images (B, 3, height, width), {layer: one map an image}).
    """
    runs: list[tuple[torch.Tensor, dict[int, list[TokenMap]]]] = []
    begin = backbone.register_forward_pre_hook(lambda _, args: runs.append((args[0], {})))
    try:
        with reducer_of(backbone, _Recorder(backbone.token_reducer, runs)):
            yield runs
    finally:
        begin.remove()


@torch.no_grad()
def token_maps(backbone: nn.Module, images: torch.Tensor) -> dict[int, list[TokenMap]]:
    """Run ``backbone`` on preprocessed images (B, 3, height, width) and return {layer: one token map an image}."""
    with record_token_maps(backbone) as runs:
        backbone(images)
    return runs[-1][1]


def _cells(grid, patch, shape):
    """Raster position of the patch that each pixel is in, (height, width)."""
    rows, columns = (np.minimum(np.arange(n) // patch, g - 1) for n, g in zip(shape, grid))
    return rows[:, None] * grid[1] + columns[None]


def _tinted(image, colors):
    """Blend the grey image with colours, (height, width, 3)."""
    grey = image.mean(-1, keepdims=True)
    return (0.4 * grey + 0.6 * colors).astype(np.uint8)


def draw_groups(image: np.ndarray, token_map: TokenMap, patch: int) -> np.ndarray:
    """Draw an image in grey with each patch tinted by its group, in ``GROUP_COLORS``.

    Args:
        image: (height, width, 3) uint8 RGB.
        token_map: Token map of the image.
        patch: Side of a patch, in pixels.

    Returns:
        A picture of the size and type of ``image``.
    """
    group = token_map.group.reshape(-1)[_cells(token_map.group.shape, patch, image.shape)]
    return _tinted(image, GROUP_COLORS[group])


def _colors_of_tokens(stands_for):
    """Choose a colour for each token that stands for several patches, unlike those of neighbouring tokens.

    Returns:
        Colours, (number of patches, 3) RGB by raster position of the token; and whether each patch shares its token
        with others, (H, W) bool.
    """
    counts = np.bincount(stands_for.reshape(-1), minlength=stands_for.size)
    touching = [set() for _ in counts]
    for one, other in (
        (stands_for[:, 1:], stands_for[:, :-1]),
        (stands_for[1:], stands_for[:-1]),
        (stands_for[1:, 1:], stands_for[:-1, :-1]),
        (stands_for[1:, :-1], stands_for[:-1, 1:]),
    ):
        for a, b in zip(one.reshape(-1).tolist(), other.reshape(-1).tolist()):
            touching[a].add(b)
            touching[b].add(a)
    chosen, used = np.full(len(counts), -1), np.zeros(len(TOKEN_COLORS))
    for token in np.argsort(-counts, kind='stable')[: (counts > 1).sum()]:
        others = [chosen[other] for other in touching[token] if other != token and chosen[other] >= 0]
        distance = np.abs(TOKEN_COLORS[:, None] - TOKEN_COLORS[np.array(others, int)]).sum(-1).min(1, initial=FAR)
        # Of the colours that are far enough from the neighbours', take the one that fewest tokens have.
        chosen[token] = np.lexsort((used, -distance))[0]
        used[chosen[token]] += 1
    return TOKEN_COLORS[chosen], counts[stands_for] > 1


def draw_matches(image: np.ndarray, token_map: TokenMap, patch: int) -> np.ndarray:
    """Draw an image in grey, with one colour and an outline for the patches that one token stands for.

    A patch that is not merged stays grey. A white dot marks the patch whose token stands for several. There may be
    more tokens than colours; neighbouring tokens differ. Arguments and result are as of :func:`draw_groups`.
    """
    colors, shared = _colors_of_tokens(token_map.stands_for)
    cells = _cells(token_map.group.shape, patch, image.shape)
    owner = token_map.stands_for.reshape(-1)[cells]
    grey = np.broadcast_to(0.6 * image.mean(-1, keepdims=True), image.shape)
    out = np.where(shared.reshape(-1)[cells][..., None], _tinted(image, colors[owner]), grey).astype(np.uint8)
    edge = np.zeros(owner.shape, bool)
    edge[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    edge[1:] |= owner[1:] != owner[:-1]
    out[edge] = 0
    for token in np.unique(token_map.stands_for[shared]).tolist():
        row, column = divmod(token, token_map.group.shape[1])
        center = int((column + 0.5) * patch), int((row + 0.5) * patch)
        cv2.circle(out, center, max(1, patch // 6), (255, 255, 255), -1)
    return out


def draw_injected(image: np.ndarray, token_map: TokenMap, patch: int) -> np.ndarray:
    """Draw each patch in the mean colour of the patches that its token stands for, and dropped patches in teal.

    Arguments and result are as of :func:`draw_groups`.
    """
    cells = _cells(token_map.group.shape, patch, image.shape)
    owner = token_map.stands_for.reshape(-1)[cells].reshape(-1)
    count = np.maximum(np.bincount(owner, minlength=token_map.group.size), 1)
    mean = np.stack(
        [np.bincount(owner, image[..., c].reshape(-1), minlength=token_map.group.size) / count for c in range(3)], 1
    )
    dropped = token_map.dropped.reshape(-1)[cells]
    return np.where(dropped[..., None], GROUP_COLORS[0], mean[owner].reshape(image.shape)).astype(np.uint8)


#: A line of text; or a legend, whose entries are (colour or None, text).
Caption = Union[str, list[tuple[Optional[np.ndarray], str]]]


def captioned(picture: np.ndarray, caption: Caption) -> np.ndarray:
    """Add a line with a caption above a picture, (height, width, 3) uint8 RGB."""
    bar = np.full((26, picture.shape[1], 3), 255, np.uint8)
    font, left = (cv2.FONT_HERSHEY_SIMPLEX, 0.5), 6
    for color, text in [(None, caption)] if isinstance(caption, str) else caption:
        if color is not None:
            cv2.rectangle(bar, (left, 7), (left + 12, 19), tuple(map(int, color)), -1)
            cv2.rectangle(bar, (left, 7), (left + 12, 19), (0, 0, 0), 1)
            left += 17
        cv2.putText(bar, text, (left, 18), *font, (0, 0, 0), 1, cv2.LINE_AA)
        left += cv2.getTextSize(text, *font, 1)[0][0] + 14
    return np.vstack([bar, picture])


def mosaic(rows: list[list[tuple[Caption, np.ndarray]]], gap: int = 6) -> np.ndarray:
    """Join rows of (caption, picture) to one picture; all pictures have one size, and ``gap`` pixels between them."""
    lines = []
    for row in rows:
        pictures = [captioned(picture, caption) for caption, picture in row]
        space = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
        lines.append(np.hstack([part for p in pictures for part in (p, space)][:-1]))
        lines.append(np.full((gap, lines[0].shape[1], 3), 255, np.uint8))
    return np.vstack(lines[:-1])
