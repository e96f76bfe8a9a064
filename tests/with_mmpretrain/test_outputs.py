"""What the head reads decides what is given back, and what is computed for it."""

import pytest
import torch
from mmpretrain.models.backbones import DistilledVisionTransformer

from mmtr.analysis.flops import count_flops
from mmtr.ops import dropping
from mmtr.reducers import dropping as drops
from mmtr.reducers import expediting, token_adapter
from mmtr.reducers.observer import Observer, reducer_of
from mmtr.reducers.words import in_words
from mmtr.undo import Undo
from mmtr.visualization.token_map import token_maps
from tests.conftest import subclasses
from tests.test_reducers.test_contract import CASES

from .test_backbones import flat, images, ours

METHODS = [cfg for cfg in CASES if cfg['type'] != 'DAR' and not cfg.get('deploy')]
every_method = pytest.mark.parametrize('cfg', METHODS, ids=str)
# Of these some tokens come back between the layers, as their settings say, so that their values must be kept.
INSIDE = [
    cfg
    for cfg in METHODS
    if cfg.get('fusion', 'llf' if cfg['type'] == 'Cropr' else '') == 'llf'
    or cfg['type'] in ('TokenAdapter', 'GridPool', 'CubistMerge')
    and cfg.get('layers', (0, 4))[1] < 4
]


class Last(Observer):
    """Keeps the tokens that leave the last layer."""

    def after_layer(self, i, tokens):
        """See ``Observer``."""
        self.tokens = tokens = self.inner.after_layer(i, tokens)
        return tokens


def last_tokens(model, x):
    with torch.no_grad(), reducer_of(model, Last(model.token_reducer)) as last:
        outs = model(x)
    return last.tokens, outs


def same(a, b, **kwargs):
    torch.testing.assert_close(a, b, **{'atol': 1e-6, 'rtol': 1e-5, **kwargs})


@every_method
def test_a_class_token_is_the_same_whether_or_not_patches_are_given_back(cfg):
    alone, whole = (ours(out_type=out, token_reduction=cfg) for out in ('cls_token', 'raw'))
    whole.load_state_dict(alone.state_dict())
    with torch.no_grad():
        same(alone(images())[0], whole(images())[0][:, 0])


@pytest.mark.parametrize('cfg', [cfg for cfg in METHODS if cfg not in INSIDE], ids=str)
@pytest.mark.parametrize('out_type', ['cls_token', 'avg_featmap', 'avg_all'])
def test_nothing_is_computed_or_kept_for_what_nobody_reads(cfg, out_type, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError('computed in vain')

    for kind in subclasses(Undo):
        monkeypatch.setattr(kind, 'expand', forbidden)
    monkeypatch.setattr(token_adapter, 'assign', forbidden)
    monkeypatch.setattr(expediting, 'reconstruction', forbidden)
    for module in (dropping, drops, token_adapter):
        if hasattr(module, 'nearest_kept'):
            monkeypatch.setattr(module, 'nearest_kept', forbidden)
    model = ours(out_type=out_type, token_reduction=cfg)
    tokens, _ = last_tokens(model, images())
    held = [value for part in ([] if tokens.undo is None else tokens.undo.parts) for value in vars(part).values()]
    assert not any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in held)
    schedule = model.token_reducer.token_schedule((5, 7), 4)
    assert not model.token_reducer.fixed_count or min(schedule) < 35


@pytest.mark.parametrize('cfg', INSIDE, ids=str)
@pytest.mark.parametrize('out_type, rest', [('avg_featmap', slice(1, None)), ('avg_all', slice(None))])
def test_what_comes_back_within_the_layers_is_in_the_mean(cfg, out_type, rest):
    model, raw = (ours(out_type=out, token_reduction=cfg) for out in (out_type, 'raw'))
    raw.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        same(model(images())[0], model.ln2(raw(images())[0][:, rest].mean(1)))


@every_method
@pytest.mark.parametrize('out_type', ['avg_featmap', 'avg_all'])
def test_a_mean_counts_a_token_as_often_as_the_patches_that_it_stands_for(cfg, out_type):
    model = ours(out_type=out_type, token_reduction=cfg)
    tokens, (found,) = last_tokens(model, images())
    normed = model.ln1(tokens.x)
    for image in range(2):
        kept = [normed[image, 0]] if out_type == 'avg_all' else []
        weights = [1.0] * len(kept)
        for k, token in enumerate(normed[image, 1:]):
            kept.append(token)
            weights.append(1.0 if tokens.size is None else float(tokens.size[image, k]))
        mean = sum(weight * token for weight, token in zip(weights, kept)) / sum(weights)
        same(found[image], model.ln2(mean), atol=1e-5)


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='ToMe', mode='progressive', r=6),
        dict(type='GridPool', ratio=0.5),
        dict(type='CubistMerge'),
        dict(type='ALGM', threshold=0.3),
        dict(type='MPM'),
    ],
    ids=str,
)
def test_the_weighted_mean_is_that_of_copies(cfg):
    # A merged token that is copied to all that it stands for counts as often: the mean of a map of copies.
    model = ours(out_type='avg_featmap', img_size=64, token_reduction=cfg)
    copies = ours(out_type='featmap', img_size=64, final_norm=False, token_reduction=dict(cfg, restore='copy'))
    copies.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        tokens = copies(images(64, 64))[0].flatten(2).transpose(1, 2)
        if cfg['type'] == 'GridPool':  # interpolates what it gives back: equal in the mean, and not normed
            model.final_norm = False
            same(model(images(64, 64))[0], model.ln2(tokens.mean(1)), atol=1e-4)
        else:
            same(model(images(64, 64))[0], model.ln2(model.ln1(tokens).mean(1)))


def test_a_mean_of_some_layers():
    cfg = dict(type='ToMe', mode='progressive', r=6)
    model = ours(out_type='avg_featmap', out_indices=(1, 3), token_reduction=cfg)
    copies = ours(out_type='featmap', out_indices=(1, 3), final_norm=False, token_reduction=dict(cfg, restore='copy'))
    copies.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        first, _ = copies(images())
        same(model(images())[0], model.ln2(first.mean((2, 3))))


def test_half_precision_keeps_its_type():
    for out_type in ('cls_token', 'avg_featmap', 'avg_all'):
        model = ours(out_type=out_type, token_reduction=dict(type='ToMe', mode='progressive')).to(torch.bfloat16)
        assert model(images().to(torch.bfloat16))[0].dtype == torch.bfloat16


def test_two_prefix_tokens():
    cfg = dict(type='EViT', keep_rate=0.5)
    pair = ours(DistilledVisionTransformer, token_reduction=cfg)
    raw = ours(DistilledVisionTransformer, out_type='raw', token_reduction=cfg)
    with torch.no_grad():
        (found,), (whole,) = pair(images()), raw(images())
    assert len(found) == 2
    for k, token in enumerate(found):
        same(token, whole[:, k])


def test_fewer_multiply_adds():
    # The published dagger: of every layer but the first one row leaves; what gives it back is not in the count.
    cfg = dict(type='TokenAdapter', per_layer=(1, 0), layers=(0, 4))
    tokens = [1 + 8 * (8 - i) for i in range(4)]
    layers = sum(n * (4 * 32 * 32 + 2 * 32 * 64) + 2 * n * n * 32 for n in tokens)
    counts = {}
    for out_type in ('cls_token', 'raw'):
        counts[out_type] = count_flops(ours(out_type=out_type, token_reduction=cfg), images(128, 128, 1))
    for count in counts.values():
        assert count.by_operator['linear'] + count.by_operator['scaled_dot_product_attention'] == layers
    # Besides, a row of 8 tokens is compared with 7, 6 and 5 others.
    assert counts['cls_token'].by_operator['matmul'] == sum(8 * 8 * rows * 32 for rows in (7, 6, 5))
    assert counts['raw'].by_operator['matmul'] > 4 * counts['cls_token'].by_operator['matmul']


@every_method
def test_pictures_show_which_tokens_are_left(cfg):
    model = ours(out_type='cls_token', token_reduction=cfg)
    tokens, _ = last_tokens(model, images())
    assert token_maps(model, images())
    if tokens.undo is None:
        return
    group, stands_for = model.token_reducer.token_map(tokens)
    assert group.shape == stands_for.shape == (2, 35)
    for image in range(2):
        there = [True] * tokens.index.shape[1] if tokens.size is None else (tokens.size[image] > 0).tolist()
        left = {int(place) for place, is_there in zip(tokens.index[image], there) if is_there} - {35}
        assert set(group[image].nonzero().flatten().tolist()) == left
        assert set(stands_for[image].tolist()) <= left


@pytest.mark.parametrize(
    'cfg, out_type, words',
    [
        (dict(type='Random', ratio=0.5), 'cls_token', '; the head reads the class token alone: nothing is given back'),
        (dict(type='Random', ratio=0.5), 'avg_all', '; the head takes the mean of what is left: nothing is given back'),
        (dict(type='ALGM', restore_at='after_head', restore='copy'), 'cls_token', ': nothing is given back'),
        (dict(type='Random', ratio=0.5), 'featmap', '4x6 patches'),
        (dict(type='Random', r=0.5, layers=(0,), fusion='llf'), 'avg_featmap', '4x6 patches'),
        (dict(type='GridPool', layers=(1, 3)), 'cls_token', '4x6 patches'),
    ],
    ids=str,
)
def test_the_log_says_what_the_head_needs(cfg, out_type, words):
    model = ours(out_type=out_type, token_reduction=cfg)
    assert in_words(model.token_reducer).endswith(words)
    with torch.no_grad():
        assert flat(model(images()))[0].isfinite().all()


def test_released_settings_for_logits_matter_to_maps_alone():
    cfg = dict(type='ALGM', variant='released', threshold=0.2, global_layer=3)
    model = ours(out_type='cls_token', token_reduction=cfg)
    assert not model.token_reducer.restores_late
    assert ours(out_type='featmap', token_reduction=cfg).token_reducer.restores_late
    with torch.no_grad():
        assert model(images())[0].shape == (2, 32)
