"""The line that the log has where a reduction starts."""

import logging

import pytest

from mmtr.models.backbones import SwinTransformer, VisionTransformer
from mmtr.models.backbones.common import backbone as tunable
from mmtr.reducers.words import in_words, reductions_in_words

IMAGES = ', in images of 23x30 patches'


def vit(reduction):
    return VisionTransformer(img_size=(368, 480), embed_dims=16, num_layers=12, num_heads=1, token_reduction=reduction)


# Of the 23x30 patches, the rows and columns that stay, and what the rules of the methods leave, counted by hand.
@pytest.mark.parametrize(
    'reduction, words',
    [
        (dict(type='TokenAdapter', ratio=0.3), f'690 -> 336 patch tokens from layer 5{IMAGES}'),  # 16 x 21
        (dict(type='TokenAdapter', ratio=0.3, layers=(2, 6)), f'690 -> 336 patch tokens from layer 2 to 5{IMAGES}'),
        (
            dict(type='TokenAdapter', per_layer=(1, 1), layers=(0, 3)),
            f'690 -> 588 patch tokens, step by step from layer 1 to 2{IMAGES}',
        ),  # 22 x 29, 21 x 28
        (dict(type='TokenAdapter', ratio=0.0), f'nothing is reduced by these settings{IMAGES}'),
        (
            dict(type='ToMe', mode='progressive', r=10, layers=(0, 2)),
            f'690 -> 670 patch tokens, step by step from layer 1{IMAGES}',
        ),
        (
            dict(type='ALGM', local_layer=1),
            f'how many of 690 patch tokens are computed on depends on the image from layer 1{IMAGES}',
        ),
        (dict(type='DAR'), f'how many of 690 patch tokens are computed on depends on the image{IMAGES}'),
        (dict(type='Expediting', grid=24), ', in images of 23x30 patches: token_reduction.grid='),
    ],
)
def test_what_a_method_leaves(reduction, words, monkeypatch):
    said = []

    def note(line, logger, level=logging.INFO):
        if level == logging.INFO:  # a warning is of another kind
            said.append(line)

    monkeypatch.setattr(tunable, 'print_log', note)
    backbone = vit(reduction)
    (line,) = said
    begin = reduction['type'] + ('' if words.startswith(',') else ': ') + words
    assert line == begin or words.startswith(',') and line.startswith(begin)
    assert reductions_in_words(backbone) == said
    backbone.set_token_reduction(None)
    assert reductions_in_words(backbone) == [] and len(said) == 1


def test_of_a_swin_a_window_is_spoken_of():
    backbone = SwinTransformer(
        embed_dims=8,
        depths=(2, 4),
        num_heads=(1, 1),
        window_size=6,
        out_indices=(0, 1),
        token_reduction=dict(type='GridPool', ratio=1 / 3, layers=(1, 3)),
    )
    assert in_words(backbone.token_reducer) == 'GridPool: 36 -> 16 tokens of a window from block 1 to 2, in stage 2'
