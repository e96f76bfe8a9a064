"""mmpretrain's ViTs: as stock without a reduction, and what is refused."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from mmpretrain.models.backbones import (
    BEiTViT,
    DeiT3,
    DistilledVisionTransformer,
    RevVisionTransformer,
    SwinTransformer,
    VisionTransformer,
    ViTEVA02,
)

from mmtr import UserError, apply_peft, apply_token_reduction
from mmtr.declared import declarations
from mmtr.registry import MODELS
from tests.hostile_values import HOSTILE, fits

ARCH = dict(embed_dims=32, num_layers=4, num_heads=4, feedforward_channels=64)
NAMES = {
    VisionTransformer: 'ClsVisionTransformer',
    DeiT3: 'DeiT3',
    DistilledVisionTransformer: 'DistilledVisionTransformer',
}
WITH_RELATIVES = (*NAMES, BEiTViT, ViTEVA02)
OUT_TYPES = ('cls_token', 'avg_featmap', 'raw', 'featmap')
OPTIONS = [
    dict(),
    dict(layer_scale_init_value=0.1),
    dict(pre_norm=True),
    dict(layer_cfgs=dict(ffn_type='swiglu_fused'), layer_scale_init_value=0.1),
    dict(final_norm=False, out_indices=[1, 3]),
    dict(with_cls_token=False),
    dict(qkv_bias=False, patch_size=(16, 8)),
    dict(patch_cfg=dict(padding=0, stride=12)),
    dict(patch_cfg=dict(stride=8), interpolate_mode='bilinear'),
]
CASES = [
    *((VisionTransformer, dict(given, out_type=out)) for given in OPTIONS for out in OUT_TYPES),
    *(
        (DeiT3, dict(given, out_type=out))
        for given in (dict(), dict(use_layer_scale=False), dict(with_cls_token=False))
        for out in ('cls_token', 'raw', 'featmap')
    ),
    *((DistilledVisionTransformer, dict(out_type=out)) for out in OUT_TYPES),
]


def drawn(model):
    """``model`` with weights that show any mistake, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    model.eval()  # mmpretrain's returns None
    return model


def host_of(kind):
    return MODELS.get(NAMES.get(kind, kind.__name__))


def stock(kind, **given):
    return drawn(kind(**{'arch': ARCH, 'img_size': (64, 96), **copy.deepcopy(given)}))


def ours(kind=VisionTransformer, **given):
    return drawn(host_of(kind)(**{'arch': ARCH, 'img_size': (64, 96), **copy.deepcopy(given)}))


def flat(outs):
    return [part for out in outs for part in (out if isinstance(out, tuple) else [out])]


def images(height=80, width=112, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    'kind, given', [case for case in CASES if case[1].get('with_cls_token', True) or case[1]['out_type'] != 'cls_token']
)
def test_without_a_reduction_it_is_stock(kind, given):
    own, expected, twin = ours(kind, **given), stock(kind, **given), apply_token_reduction(stock(kind, **given), None)
    assert list(own.state_dict()) == list(expected.state_dict())
    for x in (images(64, 96), images(), images(57, 130, 1)):
        with torch.no_grad():
            outs = [flat(model(x)) for model in (expected, own, twin)]
        for a, b, c in zip(*outs):
            # Both fuse attention by torch's own function, so there is nothing to round otherwise.
            torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(c, a, atol=1e-6, rtol=1e-6)
        assert len({len(out) for out in outs}) == 1


@pytest.mark.parametrize('kind', NAMES)
def test_training_is_that_of_stock(kind):
    given = dict(out_type='raw') | ({} if kind is DeiT3 else dict(layer_scale_init_value=0.5))
    own, expected = (
        ours(kind, drop_rate=0.1, drop_path_rate=0.3, **given),
        stock(kind, drop_rate=0.1, drop_path_rate=0.3, **given),
    )
    grads = []
    for model in (own, expected):
        model.train()
        torch.manual_seed(5)
        model(images())[0].square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        if name.endswith('ln2.weight') or name.endswith('ln2.bias'):  # DeiT3 never uses it
            assert (grad is None) == (grads[1][name] is None)
        if grad is not None:
            torch.testing.assert_close(grad, grads[1][name], atol=1e-6, rtol=1e-5)


def test_the_grid_is_that_of_the_patch_embedding():
    for given in (
        dict(),
        dict(patch_cfg=dict(padding=0, stride=12)),
        dict(patch_cfg=dict(stride=8), patch_size=(16, 8)),
    ):
        model = ours(out_type='featmap', **given)
        for shape in ((64, 96), (57, 130), (80, 112)):
            (out,) = model(images(*shape))
            assert model.token_schedule(shape) == [out.shape[2] * out.shape[3]] * 4


@pytest.mark.parametrize('kind', WITH_RELATIVES)
def test_a_twin_shares_weights_and_is_copied_and_pickled(kind):
    original = stock(kind)
    keys = list(original.state_dict())
    twin = apply_token_reduction(original, dict(type='ToMe', mode='progressive', r=3))
    assert list(twin.state_dict()) == keys and type(original) is kind
    assert all(a is b for a, b in zip(original.parameters(), twin.parameters()))
    for other in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        torch.testing.assert_close(flat(other(images())), flat(twin(images())))


def test_a_stock_model_is_reduced_where_nothing_of_ours_was_named_before():
    script = (
        'import mmtr, mmpretrain.models\n'
        'model = mmpretrain.models.VisionTransformer("deit-tiny")\n'
        'print(mmtr.apply_token_reduction(model, dict(type="ToMe")).token_reducer.name)\n'
    )
    ran = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == 'ToMe'


@pytest.mark.parametrize(
    'model, name',
    [
        (lambda: SwinTransformer('tiny'), 'SwinTransformer'),
        (lambda: RevVisionTransformer(dict(ARCH), img_size=64), 'RevVisionTransformer'),
    ],
)
def test_other_backbones_are_refused_by_class_and_library(model, name):
    with pytest.raises(
        UserError,
        match=f'^Tokens cannot be reduced in a {name} of mmpretrain: use a model with .*'
        'VisionTransformer of mmseg or mmpretrain or mmtr',
    ):
        apply_token_reduction(model(), dict(type='ToMe'))


@pytest.mark.parametrize(
    'kind, given, message',
    [
        (VisionTransformer, dict(arch='enormous'), "^arch='enormous' must be one of s, small, b, base, .*, or dict"),
        (VisionTransformer, dict(arch=dict(ARCH, num_heads=5)), '^embed_dims=32 and num_heads=5 do not fit'),
        (VisionTransformer, dict(out_type='mean'), "^out_type='mean' must be one of cls_token, avg_featmap, avg_all"),
        (VisionTransformer, dict(with_cls_token=False), "^out_type='cls_token' reads the class token: set with_cls"),
        (VisionTransformer, dict(frozen_stages=5), '^frozen_stages=5 is more than the 4 layers'),
        (VisionTransformer, dict(out_indices=4), '^out_indices=4 names layer 4: this backbone has layers 0 to 3'),
        (VisionTransformer, dict(drop_path=0.1), "^ClsVisionTransformer has no setting 'drop_path', the nearest is"),
        (VisionTransformer, dict(token_reduction=dict(type='TooMe')), "^token_reduction.type='TooMe' is unknown"),
        (DeiT3, dict(out_type='avg_featmap'), "^out_type='avg_featmap' needs a norm that mmpretrain's DeiT3 has not"),
        (DistilledVisionTransformer, dict(pre_norm=True), '^pre_norm=True: .* has no norm before its layers'),
        (DistilledVisionTransformer, dict(with_cls_token=False), '^with_cls_token=False: .* has a class token'),
    ],
)
def test_settings_that_cannot_work(kind, given, message):
    with pytest.raises(UserError, match=message):
        MODELS.get(NAMES[kind])(**{'arch': ARCH, 'img_size': 64, **given})


@pytest.mark.parametrize('kind', WITH_RELATIVES)
def test_no_hostile_value_is_taken(kind):
    host = host_of(kind)
    for setting, may_be in declarations(host).items():
        for value in HOSTILE:
            if not fits(may_be, value, None):
                with pytest.raises(UserError, match=f'^{setting}=.* must be '):
                    host(**{'arch': ARCH, 'img_size': 64, setting: value})


def test_a_frozen_backbone_beside_lora():
    model = apply_peft(stock(VisionTransformer), dict(type='LoRA'))
    expected = stock(VisionTransformer)(images())[0]
    with torch.no_grad():
        torch.testing.assert_close(model(images())[0], expected)  # LoRA starts with nothing
    model.train()
    model(images())[0].sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and all(name.startswith('peft.') for name in trained)


def test_frozen_stages_are_those_of_stock():
    own, expected = ours(frozen_stages=2), stock(VisionTransformer, frozen_stages=2)
    assert {n for n, p in own.named_parameters() if p.requires_grad} == {
        n for n, p in expected.named_parameters() if p.requires_grad
    }


@pytest.fixture
def file(tmp_path):
    """A checkpoint of a pretrained whole model of 4x4 patches, without the norm of a mean."""

    def save(**given):
        state = {f'backbone.{k}': v for k, v in stock(VisionTransformer, img_size=64, **given).state_dict().items()}
        torch.save(dict(state_dict=state), tmp_path / 'file.pth')
        return dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'), prefix='backbone.')

    return save


def test_a_pretrained_file(file):
    init = file(out_type='raw')
    model = ours(img_size=64, out_type='avg_featmap', init_cfg=init, token_reduction=dict(type='EViT'))
    torch.nn.init.zeros_(model.pos_embed)
    model.init_weights()
    own = model.state_dict()
    for name, value in stock(VisionTransformer, img_size=64, out_type='raw').state_dict().items():
        torch.testing.assert_close(own[name], value)


def test_positions_of_a_pretrained_file_are_resized_as_by_stock(file):
    init = file(out_type='raw')
    expected = VisionTransformer(arch=ARCH, img_size=(96, 64), out_type='raw')
    expected.load_state_dict(stock(VisionTransformer, img_size=64, out_type='raw').state_dict())
    model = ours(img_size=(96, 64), out_type='raw', init_cfg=init)
    model.init_weights()
    torch.testing.assert_close(model.pos_embed, expected.pos_embed)
    # Without a class token its position is left out.
    model = ours(img_size=64, out_type='featmap', with_cls_token=False, init_cfg=init)
    with pytest.raises(UserError, match='differs in 1 weights .cls_token'):
        model.init_weights()


def test_a_file_that_is_another_model(file):
    init = file(out_type='raw', final_norm=False)
    with pytest.raises(UserError, match=r'is not of this ClsVisionTransformer: it differs in 2 weights \(ln1'):
        ours(img_size=64, init_cfg=init).init_weights()
    init = file(out_type='raw', patch_size=(16, 8))
    with pytest.raises(UserError, match='is of 32 patches, which is no square'):
        ours(img_size=64, init_cfg=init).init_weights()
