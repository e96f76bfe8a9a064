"""Tab. 3 of Token Adapter: operations of SWAG's ViT-L/16 at 512x512, counted as published, from our token schedules."""

import runpy

import pytest

from mmtr.reducers import BackboneInfo, build_token_reducer
from tests.conftest import TOOLS

CONFIGS = TOOLS.parent / 'configs'
SWAG_L = BackboneInfo(depth=24, embed_dims=1024, num_prefix=1, grid=(32, 32))


def published(schedule, ffn=None, channels=1024, heads=16, classes=1000, patch=16):
    """GFLOPs of a ViT with a class token, as the paper's counter has them; rules inferred from its plain row.

    Multiply-adds count as one; on top come biases, 5 for an entry of the softmax, 4 for one of a LayerNorm, 1 for one
    of GELU, of a residual sum, of a dropout and of the scaling of queries. ``schedule`` and ``ffn``: patch tokens of
    each attention, and of each FFN where they differ.
    """
    total = schedule[0] * (3 * patch**2 + 1) * channels  # patches
    for patches, patches_of_ffn in zip(schedule, ffn or schedule):
        n, m = patches + 1, patches_of_ffn + 1
        linear = (4 * n + 8 * m) * channels**2 + (4 * n + 5 * m) * channels
        attention = 2 * n**2 * channels + 5 * heads * n**2 + n * channels
        rest = (n * (4 + 2) + m * (4 + 2 + 1 + 4 + 1)) * channels  # norm, sum, dropout; those, GELU and its dropout
        total += linear + attention + rest
    return (total + 4 * ((ffn or schedule)[-1] + 1) * channels + channels * classes) / 1e9


def schedule_of(name):
    """Patch tokens in each layer under a config's reduction; without its bases, which are mmpretrain's."""
    reduction = runpy.run_path(str(CONFIGS / f'swag_vit-l_{name}_imagenet.py'))['model']['backbone']['token_reduction']
    return build_token_reducer(reduction, SWAG_L).token_schedule(SWAG_L.grid, SWAG_L.depth)


def test_the_plain_row_is_that_of_the_paper():
    assert published([1024] * 24) == pytest.approx(364.77, rel=1e-3)


@pytest.mark.parametrize(
    'name, gflops', [('tadapter', 270.65), ('tadapter-dagger32', 224.02), ('tadapter-dagger64', 130.36)]
)
def test_reduced_rows_are_those_of_the_paper(name, gflops):
    assert published(schedule_of(name)) == pytest.approx(gflops, rel=0.01)


@pytest.mark.parametrize('name, r, gflops', [('tome32', 32, 218.18), ('tome64', 64, 116.40)])
def test_tome_merges_between_attention_and_ffn(name, r, gflops):
    schedule = schedule_of(name)
    ffn = [patches - min(r, patches // 2) for patches in schedule]
    assert ffn[:-1] == schedule[1:]
    assert published(schedule, ffn) == pytest.approx(gflops, rel=0.01)


def test_expediting_counts_its_clustering_as_dense_products():
    # 1024 tokens by 23 * 23 clusters by 1024 channels: distances and means, in each of 5 rounds.
    clustering = 5 * 2 * 1024 * 23**2 * 1024 / 1e9
    assert published(schedule_of('expediting')) + clustering == pytest.approx(275.79, rel=0.01)
