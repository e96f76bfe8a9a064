"""SegFormer++ against attention that is written out token by token, on stock weights."""

import pytest
import torch
from torch.nn import functional as F

from mmtr import UserError
from mmtr.models.backbones import EVA02, MixVisionTransformer, SwinTransformer, VisionTransformer
from mmtr.ops.cells import cell_matching, whole_cells
from mmtr.reducers.observer import Observer, reducer_of
from mmtr.reducers.segformer_plus_plus import PRESETS

from .test_contract import filled, images

STAGES = dict(embed_dims=8, num_layers=[1, 2, 2, 1], num_heads=[1, 2, 2, 4])


def merged_slowly(x, grid, cell, share):
    """One image's tokens (N, C) after merging, and for each token the number of the one that it is in."""
    target = [i for i in range(len(x)) if i // grid[1] % cell == i % grid[1] % cell == 0]
    others = [i for i in range(len(x)) if i not in target]
    likeness = {i: [float(F.cosine_similarity(x[i], x[j], 0)) for j in target] for i in others}
    ranked = sorted(others, key=lambda i: -max(likeness[i]))
    joined = {i: target[max(range(len(target)), key=likeness[i].__getitem__)] for i in ranked[: int(share * len(x))]}
    left = [i for i in range(len(x)) if i not in joined]
    groups = {i: [i, *(j for j, into in joined.items() if into == i)] for i in left}
    number = {member: k for k, members in enumerate(groups.values()) for member in members}
    return torch.stack([x[members].mean(0) for members in groups.values()]), [number[i] for i in range(len(x))]


@pytest.mark.parametrize('grid, cell, share', [((4, 6), 2, 0.6), ((5, 7), 2, 0.3), ((6, 4), 4, 0.9), ((3, 3), 4, 0.5)])
def test_cells_are_those_of_loops(grid, cell, share):
    x = torch.randn(2, grid[0] * grid[1], 5, generator=torch.Generator().manual_seed(1))
    matching = cell_matching(x, grid, share, cell)
    for image, slots, kept in zip(x, matching.slots(), matching.kept):
        merged, number = merged_slowly(image, grid, cell, share)
        # The same tokens are together, under whatever number.
        assert len(kept) == len(merged) and len(set(zip(slots.tolist(), number))) == len(merged)
    whole = whole_cells(2, grid, cell, x.device)
    for i in range(len(x[0])):
        row, column = i // grid[1] // cell * cell, i % grid[1] // cell * cell
        assert whole.kept[1][whole.slots()[1, i]] == row * grid[1] + column


def by_hand(block, x, grid, queries, keys):
    """The attention of a block of mmseg's MiT for one image, on queries and keys that merge token by token."""
    attn = block.attn
    y = x
    if attn.sr_ratio > 1:
        y = attn.norm(attn.sr(x.T.reshape(1, -1, *grid)).flatten(2)[0].T)
    coarse = tuple(n // attn.sr_ratio for n in grid)
    asked, number = (x, range(len(x))) if queries is None else merged_slowly(x, grid, *queries)
    heard = y if keys is None else merged_slowly(y, coarse, *keys)[0]
    out = attn.attn(*(t.unsqueeze(1) for t in (asked, heard, heard)))[0][:, 0]
    return out[list(number)]


class Compared(Observer):
    """Compares attention with ``by_hand``."""

    blocks, seen = (), ()

    def attention(self, i, attn, x, tokens):
        result = self.inner.attention(i, attn, x, tokens)
        out = result[0] if isinstance(result, tuple) else result
        queries, keys = (each and (each.cell, each.share) for each in PRESETS[self.inner.preset][[0, 1, 1, 2, 2, 3][i]])
        for image, found in zip(x, out):
            expected = by_hand(self.blocks[i], image, tokens.grid, queries, keys)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        self.seen = (*self.seen, i)
        return result


@torch.no_grad()
@pytest.mark.parametrize('preset', ['hq', 'fast'])
def test_attention_is_that_of_loops(preset):
    model = filled(MixVisionTransformer(**STAGES, token_reduction=dict(type='SegFormerPlusPlus', preset=preset))).eval()
    with reducer_of(model, Compared(model.token_reducer)) as compared:
        compared.blocks = model.all_layers
        model(images(2, 64, 96))
    assert compared.seen == (0, 1, 2, 3, 4, 5)


@torch.no_grad()
def test_the_mean_of_cells_is_pooling():
    model = filled(MixVisionTransformer(**STAGES, token_reduction=dict(type='SegFormerPlusPlus', preset='2x2'))).eval()
    attn, x, grid = model.all_layers[0].attn, torch.randn(2, 16 * 24, 8), (16, 24)
    found, _ = model.token_reducer.attention(0, attn.at(_tokens(x, grid)), x, _tokens(x, grid))
    y = attn.norm(attn.sr(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2))
    pooled = F.avg_pool2d(x.transpose(1, 2).unflatten(2, grid), 2).flatten(2).transpose(1, 2)
    out = attn.attn(*(t.transpose(0, 1) for t in (pooled, y, y)))[0].permute(1, 2, 0).unflatten(2, (8, 12))
    expected = F.interpolate(out, scale_factor=2, mode='nearest').flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def _tokens(x, grid):
    from mmtr.tokens import Tokens

    return Tokens(x, grid, form=grid)


def test_tokens_of_each_stage():
    model = MixVisionTransformer(**STAGES, token_reduction=dict(type='SegFormerPlusPlus'))
    # 0.8 of 32x32 and of 16x16 queries in stages 3 and 4.
    assert model.token_schedule((512, 512)) == [16384, 4096, 4096, 1024 - 819, 1024 - 819, 256 - 204]


def test_layers_of_windows_attend_as_before():
    settings = dict(img_size=64, embed_dims=32, num_layers=2, num_heads=4, with_cls_token=False, out_indices=(0, 1))
    windows = dict(window_size=2, window_layers=(0,))
    plain = filled(EVA02(**settings, **windows)).eval()
    reduced = EVA02(**settings, **windows, token_reduction=dict(type='SegFormerPlusPlus')).eval()
    reduced.load_state_dict(plain.state_dict())
    with torch.no_grad():
        (first, second), (own, other) = plain(images(1, 64, 64)), reduced(images(1, 64, 64))
    torch.testing.assert_close(first, own)
    assert (second - other).abs().max() > 1e-3


@pytest.mark.parametrize(
    'build, message',
    [
        (
            lambda cfg: SwinTransformer(token_reduction=cfg),
            'merges queries and keys apart, which attention within windows',
        ),
        (lambda cfg: MixVisionTransformer(**STAGES, token_reduction=dict(cfg, stage=2)), 'stage=2 has no effect'),
        (lambda cfg: VisionTransformer(token_reduction=dict(cfg, preset='2x2', share=0.3)), 'share=0.3 has no effect'),
        (lambda cfg: VisionTransformer(token_reduction=dict(cfg, preset='n2d')), "preset='n2d' must be one of"),
    ],
)
def test_what_has_no_effect_is_refused(build, message):
    with pytest.raises(UserError, match=message):
        build(dict(type='SegFormerPlusPlus'))
