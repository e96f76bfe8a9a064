"""Whatever a setting is given, it works or a sentence says why not: each reducer, PEFT and backbone as it declares."""

import inspect
import itertools
import logging
import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModule

from mmtr import UserError, apply_token_reduction
from mmtr import settings as declared
from mmtr.declared import Declared, declarations
from mmtr.models import backbones
from mmtr.models.backbones import EVA02, DINOv2, PyramidVisionTransformerV2, SwinTransformer, VisionTransformer, ViTDet
from mmtr.peft import build_peft
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.reducers.expediting import Expediting
from mmtr.registry import MODELS, PEFTS, TOKEN_REDUCERS
from mmtr.settings import Listed, Maybe, Pair, Whole

from .hostile_values import HOSTILE, NAN, drawn, fits
from .test_reducers.test_contract_stages import SMALL as STAGED

TOKEN_REDUCERS.import_from_location()
PEFTS.import_from_location()
PLAIN = dict(img_size=(32, 48), patch_size=16, embed_dims=16, num_layers=4, num_heads=2)
#: Settings of the small model of a host, where they are not those of a plain ViT.
OWN = {
    VisionTransformer: dict(PLAIN, mlp_ratio=2),
    DINOv2: dict(PLAIN, mlp_ratio=2),
    **STAGED,
    ViTDet: dict(PLAIN, pretrain_img_size=32, window_size=2, global_attn_indexes=[2]),
    PyramidVisionTransformerV2: dict(
        embed_dims=8, num_layers=(1, 2, 1, 1), num_heads=(1, 2, 1, 1), sr_ratios=(2, 1, 1, 1)
    ),
}
BACKBONES = {host: OWN.get(host, PLAIN) for host in (getattr(backbones, name) for name in backbones.__all__)}
#: What only the files or images of a user can show to be wrong.
OF_FILES = ('pretrained', 'init_cfg', 'in_channels')


def hosts():
    """Each method in a plain ViT, and in a Swin where it works there."""
    for host, (key, registry) in itertools.product(
        (VisionTransformer, SwinTransformer), (('token_reduction', TOKEN_REDUCERS), ('peft', PEFTS))
    ):
        for name, method in sorted(registry.module_dict.items()):
            if host is VisionTransformer or getattr(method, 'leaves_grid', True):
                yield pytest.param(host, key, name, id=f'{name} {key} {host.__name__}')


def works(host, **given):
    """Whether a backbone with these settings computes; if not it must have said why."""
    try:
        model = host(**{**BACKBONES[host], **given})
        model.eval()
        with torch.no_grad():
            out = list(model(torch.linspace(-2, 2, 3 * 40 * 56).view(1, 3, 40, 56)))
    except UserError as error:
        assert '\n' not in str(error) and len(str(error)) < 900, given
        return False
    maps = [part for each in out for part in (each if isinstance(each, list) else [each])]
    assert all(each.isfinite().all() for each in maps), given
    return True


@pytest.fixture(autouse=True)
def start():
    torch.manual_seed(0)


@pytest.mark.parametrize('host, key, name', hosts())
def test_a_method_takes_no_hostile_value(host, key, name):
    kind = (TOKEN_REDUCERS if key == 'token_reduction' else PEFTS).get(name)
    plain = host(**BACKBONES[host])
    rng = random.Random(0)
    for setting in inspect.signature(kind).parameters:
        if setting == 'backbone':
            continue
        taken = []
        for value in HOSTILE:
            cfg = {'type': name, setting: value}
            try:
                plain.build_reducer(cfg) if key == 'token_reduction' else build_peft(cfg, plain.shape)
                taken.append(cfg)
            except UserError as error:
                assert setting in str(error), (setting, value)
        for cfg in rng.sample(taken, min(len(taken), 1)):
            works(host, **{key: cfg})


@pytest.mark.parametrize('host', BACKBONES, ids=lambda host: host.__name__)
def test_a_backbone_takes_no_hostile_value(host):
    for setting, may_be in declarations(host).items():
        taken = [value for value in HOSTILE if fits(may_be, value, None)]
        refused = [value for value in HOSTILE if not fits(may_be, value, None)]
        for value in refused:
            with pytest.raises(UserError, match=f'^{setting}=.* must be '):
                host(**{**BACKBONES[host], setting: value})
        for value in taken[:1] if setting not in OF_FILES else []:
            works(host, **{setting: value})


@pytest.mark.slow
@pytest.mark.parametrize('host, key, name', hosts())
def test_any_settings_of_a_method_together(host, key, name):
    kind = (TOKEN_REDUCERS if key == 'token_reduction' else PEFTS).get(name)
    rng, count = random.Random(name), 0
    for _ in range(40):
        chosen = {
            setting: rng.choice(HOSTILE) if rng.random() < 0.05 else drawn(may_be, rng, 4)
            for setting, may_be in declarations(kind).items()
            if rng.random() < 0.4
        }
        count += works(host, **{key: dict(type=name, **chosen)})
    assert count >= 5


@pytest.mark.slow
@pytest.mark.parametrize('host', BACKBONES, ids=lambda host: host.__name__)
def test_any_settings_of_a_backbone_together(host):
    rng, count = random.Random(host.__name__), 0
    for _ in range(80):
        chosen = {
            setting: rng.choice(HOSTILE) if rng.random() < 0.03 else drawn(may_be, rng, 4)
            for setting, may_be in declarations(host).items()
            if setting not in OF_FILES and rng.random() < 0.15
        }
        count += works(host, **chosen)
    assert count >= 5


@pytest.mark.parametrize(
    'kind',
    [*TOKEN_REDUCERS.module_dict.values(), *PEFTS.module_dict.values(), *BACKBONES],
    ids=lambda kind: f'{kind.__module__}.{kind.__name__}',
)
def test_every_setting_is_declared(kind):
    undeclared = set(inspect.signature(kind).parameters) - set(declarations(kind))
    assert undeclared <= {'backbone', 'token_reduction', 'peft'}


class Example(Declared, BaseModule):
    """What the next test builds."""

    setting_prefix = 'key.'

    def __init__(
        self,
        count: Whole(1, 8) = 2,
        share: Pair(declared.SHARE) = 0.5,
        places: Maybe(Listed(Whole(0, 9), rising=True)) = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.found = count, share, places


@pytest.mark.parametrize(
    'given, words',
    [
        (dict(count=9), 'key.count=9 must be a whole number from 1 to 8.'),
        (dict(count=True), 'key.count=True must be a whole number from 1 to 8.'),
        (dict(count=2.0), 'key.count=2.0 must be a whole number from 1 to 8, written 2.'),
        (dict(count=9.0), 'key.count=9.0 must be a whole number from 1 to 8.'),
        (dict(share=NAN), 'key.share=nan must be a share of at least 0, below 1, or two for (rows, columns).'),
        (dict(share=[0.1]), 'key.share=[0.1] must be a share of at least 0, below 1, or two for (rows, columns).'),
        (
            dict(places=(3, 3)),
            'key.places=(3, 3) must be a list in rising order, each a whole number from 0 to 9, or None.',
        ),
        (
            dict(palces=3),
            "Example has no setting 'palces', the nearest is 'places': it has count, share, places, init_cfg.",
        ),
    ],
)
def test_the_sentence(given, words):
    with pytest.raises(UserError) as error:
        Example(**given)
    assert str(error.value) == words


def test_values_as_code_gets_them():
    assert Example().found == (2, (0.5, 0.5), None)
    found = Example(np.int64(3), [np.float32(0.5), 0], [1, 4], init_cfg=dict(type='x'))
    assert found.found == (3, (0.5, 0), (1, 4)) and found.init_cfg == dict(type='x')
    assert [type(n) for n in (found.found[0], *found.found[1])] == [int, float, int]


def test_what_is_built_without_a_config_is_checked_too():
    with pytest.raises(UserError, match='token_reduction.n_iters=1000000000 must be a whole number from 1 to 100'):
        Expediting(BackboneInfo(4, 16, 1), n_iters=10**9)


@pytest.mark.parametrize(
    'build, words',
    [
        (
            lambda: VisionTransformer(token_reducton=dict(type='ToMe')),
            "VisionTransformer has no setting 'token_reducton', the nearest is 'token_reduction'",
        ),
        (
            lambda: MODELS.build(dict(type='mmtr.SwinTransformer', embed_dim=96)),
            "'embed_dim', the nearest is 'embed_dims'",
        ),
        (lambda: DINOv2(num_register=4), "'num_register', the nearest is 'num_registers'"),
        (lambda: EVA02(pfet=None), "'pfet', the nearest is 'peft'"),
        (
            lambda: MODELS.build(dict(type='mmtr.SegmenterMaskTransformerHead', token_reducton=None)),
            "'token_reducton', the nearest is 'token_reduction'",
        ),
        (
            lambda: build_token_reducer(dict(type='GridPool', rato=0.3), BackboneInfo(4, 16, 1)),
            "token_reduction of type GridPool has no setting 'rato', the nearest is 'ratio': "
            'it has ratio, layers, restore.',
        ),
    ],
)
def test_a_misspelt_name(build, words):
    with pytest.raises(UserError, match=words):
        build()


@pytest.fixture
def warned(monkeypatch):
    """Function from an action to what it warns of."""
    lines = []

    def print_log(text, logger, level=logging.INFO):
        lines.extend([text] if level == logging.WARNING else [])

    for where in ('mmtr.reducers.base', 'mmtr.models.backbones.common.backbone'):
        monkeypatch.setattr(f'{where}.print_log', print_log)

    def run(act):
        lines.clear()
        act()
        return ' '.join(lines)

    return run


@pytest.mark.parametrize('method', ['Cropr', 'DAR', 'GridPool'])
def test_a_method_that_has_not_learnt_says_so_where_it_is_used(method, warned):
    def said(act):
        return f'{method} learns which tokens matter and has not' in warned(act)

    def build(**key):
        model = VisionTransformer(**BACKBONES[VisionTransformer], **key)
        model.init_weights()
        return model

    learns, cfg = method != 'GridPool', dict(type=method)
    model = build(token_reduction=cfg)
    assert said(model.eval) == learns
    assert not said(model.eval), 'once'
    assert said(lambda: apply_token_reduction(build().eval(), cfg)) == learns
    loaded = build(token_reduction=cfg)
    loaded.load_state_dict(model.state_dict())
    assert not said(loaded.eval)
    plain = build(token_reduction=cfg)
    plain.load_state_dict(build().state_dict(), strict=False)
    assert said(plain.eval) == learns
    assert not said(build(token_reduction=cfg).train().eval), 'trained'


@pytest.mark.parametrize(
    'channels, settings, slower',
    [(192, dict(), True), (192, dict(mode='progressive'), True), (192, dict(r=0), False), (384, dict(), False)],
)
def test_tome_says_that_a_small_model_gains_nothing(channels, settings, slower, warned):
    said = warned(
        lambda: VisionTransformer(
            **{**BACKBONES[VisionTransformer], 'embed_dims': channels}, token_reduction=dict(type='ToMe', **settings)
        )
    )
    assert said.startswith(f'ToMe matches tokens in every layer, which costs a backbone of {channels}') == slower
