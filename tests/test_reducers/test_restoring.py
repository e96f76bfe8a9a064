import pytest
import torch

from mmtr import UserError
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.tokens import Tokens

from .test_contract import images
from .test_contract import vit as backbone

#: Every method that restores, with settings that reduce once and several times.
RESTORING = [
    dict(type='ALGM', threshold=0.2),
    dict(type='ALGM', threshold=0.2, variant='released', restore_at='before_norm'),
    dict(type='Cropr', region=2),
    dict(type='Random', r=0.3),
    dict(type='CubistMerge', layers=(1, 3)),
    dict(type='CubistMerge', ratio=(0.5, 0.2), merge='average', layers=(0, 4)),
    dict(type='EViT', keep_rate=0.6, layers=(0, 2)),
    dict(type='EViT', keep_rate=0.5, layers=(0, 1), fuse=False),
    dict(type='Expediting', layer=1, grid=0.5),
    dict(type='Expediting', layer=0, grid=0.4, normalize='l1', k=3),
    dict(type='GridPool', layers=(1, 3)),
    dict(type='GridPool', ratio=(0.6, 0.2), layers=(0, 4)),
    dict(type='MPM', layers=(0, 2)),
    dict(type='Random', layer=1, ratio=0.6),
    dict(type='ToMe', mode='progressive', r=5),
    dict(type='ToMe', mode='progressive', r=5, matching='energy'),
    dict(type='TokenAdapter', layers=(1, 3)),
    dict(type='TokenAdapter', per_layer=(1, 1)),
    dict(type='TokenAdapter', mode='threshold', tau=0.1, layers=(0, 4)),
]
every_restoring = pytest.mark.parametrize('cfg', RESTORING, ids=str)


def silenced(cfg, constant=0.0):
    """A backbone whose layers add ``constant`` to every token, and nothing else."""
    model = backbone(None)
    model.set_token_reduction(cfg)
    for layer in model.layers:
        for linear in (layer.attn.attn.out_proj, layer.ffn.layers[1]):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.constant_(linear.bias, constant / 2)
    model.final_norm = False
    return model.eval()


@every_restoring
def test_what_did_not_change_is_given_back_exactly(cfg):
    with torch.no_grad():
        plain = silenced(None)(images())
        kept = silenced({**cfg, 'restore': 'residual'})(images())
        copied = silenced({**cfg, 'restore': 'copy'})(images())
    for out, own in zip(kept, plain):
        torch.testing.assert_close(out, own, atol=1e-5, rtol=1e-5)
    assert (copied[1] - plain[1]).abs().max() > 0.1


@every_restoring
def test_a_change_that_all_share_reaches_every_patch(cfg):
    with torch.no_grad():
        plain, out = (silenced(c, constant=0.7)(images())[1] for c in (None, {**cfg, 'restore': 'residual'}))
    torch.testing.assert_close(out, plain, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='TokenAdapter', layers=(2, 4)),
        dict(type='CubistMerge', layers=(2, 4)),
        dict(type='GridPool', layers=(2, 4)),
        dict(type='Random', layer=2),
        dict(type='TokenAdapter', layers=(2, 4), mode='threshold', tau=0.2, unique=0.2),
        dict(type='Expediting', layer=2, grid=0.5, normalize='l1'),
    ],
    ids=str,
)
def test_residual_is_own_value_and_the_copied_change(cfg):
    generator = torch.Generator().manual_seed(0)
    before = Tokens(torch.randn(2, 1 + 54, 16, generator=generator), (6, 9), 1)
    copy, residual = (
        build_token_reducer({**cfg, 'restore': how}, BackboneInfo(6, 16, 1)) for how in ('copy', 'residual')
    )
    made, inside = copy.before_layer(2, before), residual.before_layer(2, before)
    assert torch.equal(made.x, inside.x)
    refined = torch.randn(made.x.shape, generator=generator)
    m, y = (copy.restore(made.replace(x=x)) for x in (made.x, refined))
    out = residual.restore(inside.replace(x=refined))
    torch.testing.assert_close(out.patches, before.patches + y.patches - m.patches)
    assert torch.equal(out.prefix, refined[:, :1]) and out.index is None and out.size is None and out.undo is None


@pytest.mark.parametrize(
    'cfg, words',
    [
        (dict(type='GridPool', restore='none'), "restore='none' must be one of copy, residual"),
        (dict(type='ALGM', restore=''), "restore='' must be one of copy, residual, learned, or None"),
        (dict(type='Random', restore='nearest'), "restore='nearest' must be one of last, copy, residual"),
        (dict(type='ToMe', restore='residual'), "restore='residual' is for mode='progressive'"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_when_built(cfg, words):
    with pytest.raises(UserError, match=words):
        build_token_reducer(cfg, BackboneInfo(6, 16, 1))
