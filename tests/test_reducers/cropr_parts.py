"""A small Cropr and tokens for it."""

import torch

from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.tokens import Tokens

GRID, CHANNELS, PREFIX = (4, 6), 16, 2


def reducer(kind='Cropr', depth=6, grid=GRID, prefix=PREFIX, **settings):
    torch.manual_seed(0)
    return build_token_reducer(dict(type=kind, **settings), BackboneInfo(depth, CHANNELS, prefix, grid)).eval()


def some_tokens(batch=2, grid=GRID, prefix=PREFIX):
    generator = torch.Generator().manual_seed(1)
    return Tokens(torch.randn(batch, prefix + grid[0] * grid[1], CHANNELS, generator=generator), grid, prefix)


def normalised(token, norm):
    mean, variance = token.mean(), token.var(unbiased=False)
    return (token - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias
