"""A share of a reduction, between nothing and what is configured, for every registered reducer."""

import pytest
import torch

from mmtr import UserError
from mmtr.models.backbones import MixVisionTransformer, SwinTransformer
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.reducers.auxiliary import auxiliary_outputs
from mmtr.reducers.rising import settings_at_share

from .test_contract import CASES, images, vit
from .test_contract_stages import host_of

CANNOT = dict(
    ALGM='has no number that says how much', MPM='has no number that says how much', DAR='learns how much it reduces'
)


def put_in(model, full, share):
    """Give ``model`` the reducer of a share, as the hook does in training."""
    if full.rate is None:
        model.token_reducer = full.at_share(share)
    else:
        full.train().rate = share
    return model.token_reducer


@pytest.mark.parametrize('cfg', [cfg for cfg in CASES if cfg['type'] not in CANNOT], ids=str)
def test_every_reducer_rises_from_nothing_to_what_is_configured(cfg):
    model, plain, x = vit(cfg), vit(None), images(1, 64, 96)
    plain.load_state_dict(model.state_dict(), strict=False)
    full, grid = model.token_reducer, (4, 6)
    configured = full.token_schedule(grid, 4)
    with torch.no_grad(), auxiliary_outputs():
        expected = model(x)
        put_in(model, full, 0.0)
        for out, own in zip(model(x), plain(x)):
            torch.testing.assert_close(out, own, atol=1e-5, rtol=1e-5)
        put_in(model, full, 1.0)
        assert all(torch.equal(out, own) for out, own in zip(model(x), expected))
    schedules = [put_in(model, full, share / 8).token_schedule(grid, 4) for share in range(9)]
    assert schedules[0] == [24] * 4 and schedules[-1] == configured
    assert all(a >= b for one, two in zip(schedules, schedules[1:]) for a, b in zip(one, two))
    # Between 1 column and 2 there is no other.
    settings = {str(settings_at_share(full, share / 8)) for share in range(9)} if full.rate is None else 'any'
    assert len(set(map(tuple, schedules))) > 2 or len(settings) == 2, 'there is something between'


@pytest.mark.parametrize('name', CANNOT)
def test_what_cannot_rise_is_refused(name):
    with pytest.raises(UserError, match=f'{CANNOT[name]}.*take mmtr.ReductionCurriculumHook out of custom_hooks'):
        vit(dict(type=name)).token_reducer.at_share(0.5)


@pytest.mark.parametrize(
    'cfg, half',
    [
        (dict(type='TokenAdapter'), dict(ratio=(0.15, 0.15))),
        (dict(type='TokenAdapter', per_layer=(2, 5)), dict(per_layer=(1, 2))),
        (dict(type='EViT', keep_rate=0.7, layers=(1,)), dict(keep_rate=0.85)),
        (dict(type='Expediting', grid=(4, 0.5)), dict(grid=(0.75, 0.75))),
        (dict(type='ToMe'), dict(r=[0.15] * 4)),
        (dict(type='ToMe', mode='progressive', r=[0, 9, 3, 2]), dict(r=[0, 4, 2, 1])),
        (dict(type='ToMe', mode='progressive', r=(0.2, -1), layers=(1, 4)), dict(r=[0.2, 0.1, 0.0])),
        (dict(type='SegFormerPlusPlus'), dict(share=(0.4,))),
    ],
    ids=str,
)
def test_half_of_the_strength(cfg, half):
    reducer = build_token_reducer(cfg, BackboneInfo(4, 8, 1, (8, 8))).at_share(0.5)
    changed = {key: reducer.cfg[key] for key in half}
    assert changed == {key: pytest.approx(value) for key, value in half.items()}
    assert {key: value for key, value in reducer.cfg.items() if key not in half}.items() <= cfg.items()


def test_stages_rise_by_their_own_shares():
    stages = BackboneInfo(5, 8, 0, depths=(1, 1, 2, 1))
    reducer = build_token_reducer(dict(type='SegFormerPlusPlus'), stages).at_share(0.5)
    merging = [(queries or keys).share for queries, keys in reducer.ways]
    assert merging == [0.3, 0.3, 0.4, 0.4, 0.4] and [bool(queries) for queries, _ in reducer.ways] == [0, 0, 1, 1, 1]
    with pytest.raises(UserError, match=r'share=\(0.3, 0.5\) has 2 values for 4 stages: give one for each'):
        build_token_reducer(dict(type='SegFormerPlusPlus', share=[0.3, 0.5]), stages)
    with pytest.raises(UserError, match='with these settings has no number'):
        build_token_reducer(dict(type='SegFormerPlusPlus', preset='2x2'), stages).at_share(0.5)


@pytest.mark.parametrize(
    'kind, settings',
    [
        (SwinTransformer, dict(type='TokenAdapter', ratio=0.5)),
        (SwinTransformer, dict(type='Expediting', grid=4, layer=1)),
        (SwinTransformer, dict(type='Random', ratio=0.6)),
        # Of 10x14 tokens, or of 20x28 with a kernel of 2.
        (MixVisionTransformer, dict(type='TokenAdapter', stage=1, layers=(0, 2), per_layer=(4, 2))),
    ],
    ids=str,
)
def test_a_stage_rises(kind, settings):
    model = host_of(kind)(settings)
    full, configured, schedules = model.token_reducer, model.token_schedule((80, 112)), []
    for share in range(5):
        model.token_reducer = full.at_share(share / 4)
        schedules.append(model.token_schedule((80, 112)))
    assert schedules[0] == [560, 560, 140, 140, 140, 140] and schedules[-1] == configured
    assert all(a >= b for one, two in zip(schedules, schedules[1:]) for a, b in zip(one, two))
    model.token_reducer = full.at_share(0.5)
    with torch.no_grad():
        assert all(out.isfinite().all() for out in model(images(1)))


def test_counts_of_an_unknown_grid_are_refused():
    reducer = host_of(MixVisionTransformer)(dict(type='Expediting', grid=4)).token_reducer
    with pytest.raises(UserError, match=r'grid=\(4, 4\) has counts.*give fractions'):
        reducer.at_share(0.5)
