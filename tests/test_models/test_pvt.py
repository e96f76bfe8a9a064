"""PVT and PVTv2 against mmdet's, whole and with a stage on a coarser grid; official files of weights."""

import copy
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones import pvt
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmseg.models.utils import nlc_to_nchw
from torch import nn

from mmtr import UserError, apply_peft, apply_token_reduction
from mmtr.models.backbones import PyramidVisionTransformer, PyramidVisionTransformerV2
from mmtr.registry import MODELS as OURS

from . import test_pyramid
from .in_double import CLOSE, assert_alike, images, pair_of

SMALL = dict(embed_dims=8, num_layers=[1, 1, 3, 2], num_heads=[1, 2, 4, 4], drop_path_rate=0.0)
STOCK = {
    PyramidVisionTransformer: pvt.PyramidVisionTransformer,
    PyramidVisionTransformerV2: pvt.PyramidVisionTransformerV2,
}
both = pytest.mark.parametrize('host', STOCK, ids=lambda host: host.__name__[24:] or 'V1')


def pair(host, **kwargs):
    return pair_of(STOCK[host], host, {**SMALL, **kwargs})


@pytest.mark.parametrize(
    'host, kwargs',
    [
        (PyramidVisionTransformer, dict()),
        (PyramidVisionTransformer, dict(pretrain_img_size=(64, 96), qkv_bias=False, out_indices=(1, 3))),
        (PyramidVisionTransformer, dict(use_abs_pos_embed=False, use_conv_ffn=True, norm_after_stage=True)),
        (PyramidVisionTransformer, dict(patch_sizes=[7, 3, 3, 2], paddings=[2, 0, 1, 0], sr_ratios=[5, 3, 1, 1])),
        (PyramidVisionTransformerV2, dict()),
        (PyramidVisionTransformerV2, dict(sr_ratios=[1, 1, 1, 1], mlp_ratios=[2, 3, 1, 2])),
    ],
    ids=str,
)
@pytest.mark.parametrize('size', [(64, 64), (96, 64), (77, 131)], ids=str)
def test_outputs_are_the_stock_ones(host, kwargs, size):
    theirs, ours = pair(host, **kwargs)
    x = images(*size)
    with torch.no_grad():
        expected = theirs(x)
        assert_alike(ours(x), expected)
        twin = apply_token_reduction(copy.deepcopy(theirs), None, 'math')
        assert type(twin) is host and list(twin.state_dict()) == list(theirs.state_dict())
        assert_alike(twin(x), expected)


@both
def test_training_is_that_of_stock(host):
    outs, gradients = [], []
    for model in pair(host, drop_path_rate=0.3):
        torch.manual_seed(5)
        outs.append(model.train()(images(64, 96)))
        sum(out.square().mean() for out in outs[-1]).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_alike(outs[1], outs[0])
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, **CLOSE, msg=name)


def pooled_by_hand(model, x, stage, cells, span):
    """mmdet's loop, with its blocks ``span`` of one stage run on a grid that is pooled, and upsampled, by hand."""
    for i, (embed, modules, norm) in enumerate(model.layers):
        x, grid = embed(x)
        tables = [module for module in modules if isinstance(module, pvt.AbsolutePositionEmbedding)]
        for table in tables:
            x = table(x, grid)
        for j, block in enumerate(list(modules)[len(tables) :]):
            if (i, j) == (stage, span[0]):
                before = x
                x = first = F.adaptive_avg_pool2d(nlc_to_nchw(x, grid), cells).flatten(2).transpose(1, 2)
            x = block(x, cells if i == stage and span[0] <= j < span[1] else grid)
            if (i, j) == (stage, span[1] - 1):
                change = F.interpolate(nlc_to_nchw(x - first, cells), size=grid, mode='bilinear', align_corners=False)
                x = before + change.flatten(2).transpose(1, 2)
        x = nlc_to_nchw(norm(x), grid)
        yield x


@both
@pytest.mark.parametrize(
    'stage, span, cells',
    [(3, (0, 2), (4, 6)), (3, (1, 3), (4, 6)), (1, (0, 1), (16, 24)), (4, (0, 1), (2, 3))],
    ids=str,
)
def test_a_stage_on_a_coarser_grid_is_stock_on_that_grid(host, stage, span, cells):
    theirs, ours = pair(host)
    ours.set_token_reduction(dict(type='GridPool', stage=stage, ratio=0.5, layers=span))
    x = images(128, 192)
    with torch.no_grad():
        for out, same in zip(ours(x), pooled_by_hand(theirs, x, stage - 1, cells, span)):
            torch.testing.assert_close(out, same, **CLOSE)


@both
def test_lora_merges(host):
    stock, _ = pair(host)
    model = apply_peft(copy.deepcopy(stock), dict(type='LoRA', rank=2, targets=['qkv', 'proj', 'fc1', 'fc2']))
    for low_rank in (module for each in model.peft.layers for module in each.values()):
        nn.init.normal_(low_rank.up.weight, std=0.3)
    stock.load_state_dict(model.peft.merged_state_dict(model), strict=True)
    with torch.no_grad():
        for out, same in zip(model.eval()(images(64, 96)), stock(images(64, 96))):
            torch.testing.assert_close(out, same, **CLOSE)


def official(state):
    """Weights with the names of the release, by hand: a list of blocks may begin with a table of positions."""
    found = {'head.weight': torch.ones(10, 32), 'norm.weight': torch.ones(32), 'cls_token': torch.ones(1, 1, 32)}
    shift = 'layers.0.1.0.pos_embed' in state
    for name, value in state.items():
        stage, part, *rest = name.split('.')[1:]
        stage, end = int(stage) + 1, '.'.join(rest)
        if part == '0':
            found[f'patch_embed{stage}.{end.replace("projection", "proj")}'] = value
        elif part == '2':
            found[f'norm{stage}.{end}'] = value
        elif end == '0.pos_embed':
            found[f'pos_embed{stage}'] = torch.cat([torch.ones(1, 1, 32), value], 1) if stage == 4 else value
        else:
            block, end = f'block{stage}.{int(rest[0]) - shift}.', '.'.join(rest[1:])
            if 'in_proj_' in end:
                kind = end.rpartition('_')[2]
                found[f'{block}attn.q.{kind}'], found[f'{block}attn.kv.{kind}'] = value.tensor_split([len(value) // 3])
            elif end.startswith('ffn'):
                _, _, number, kind = end.split('.')
                layer = {'0': 'fc1', '1': 'dwconv.dwconv'}.get(number, 'fc2')
                found[f'{block}mlp.{layer}.{kind}'] = (
                    value.flatten(1) if layer[:2] == 'fc' and kind == 'weight' else value
                )
            else:
                found[block + end.replace('attn.out_proj', 'proj')] = value
    return found


@pytest.fixture
def checkpoint(tmp_path):
    """Function that writes weights into a file, and returns its path."""

    def write(state):
        torch.save(state, tmp_path / 'pvt.pth')
        return str(tmp_path / 'pvt.pth')

    return write


@both
def test_official_weights_are_loaded_as_by_mmdet(host, checkpoint):
    made = test_pyramid.filled(STOCK[host](**SMALL))
    path = checkpoint(official(made.state_dict()))
    # As mmdet's configs write it, without a type.
    stock = STOCK[host](**SMALL, init_cfg=ConfigDict(checkpoint=path))
    by_hand = [host(**SMALL, init_cfg=dict(checkpoint=path)), host(**SMALL, pretrained=path)]
    for model in (stock, *by_hand, apply_token_reduction(STOCK[host](**SMALL, init_cfg=stock.init_cfg), None)):
        model.init_weights()
        assert all(torch.equal(model.state_dict()[name], value) for name, value in made.state_dict().items())


@both
@pytest.mark.parametrize('whole', [False, True])
def test_weights_with_the_names_of_mmdet_are_loaded(host, whole, checkpoint):
    state = test_pyramid.filled(STOCK[host](**SMALL)).state_dict()
    prefix = dict(prefix='backbone.') if whole else {}
    path = checkpoint(dict(state_dict={prefix.get('prefix', '') + name: value for name, value in state.items()}))
    model = host(**SMALL, init_cfg=dict(type='Pretrained', checkpoint=path, **prefix))
    model.init_weights()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


@both
@pytest.mark.parametrize('case', ['other width', 'lacks', 'a ViT', 'convert_weights=False', 'whole model'])
def test_weights_of_another_model_are_refused(host, case, checkpoint):
    state = STOCK[host](**{**SMALL, 'embed_dims': 16 if case == 'other width' else 8}).state_dict()
    if case == 'lacks':
        del state['layers.2.1.1.norm1.weight']
    path = checkpoint(
        {'patch_embed.proj.weight': torch.ones(2)}
        if case == 'a ViT'
        else official(state)
        if case == 'convert_weights=False'
        else {f'backbone.{name}': value for name, value in state.items()}
        if case == 'whole model'
        else state
    )
    settings = dict(SMALL, convert_weights='=' not in case)
    model = host(**settings, init_cfg=dict(checkpoint=path))
    message = r'is not of this PyramidVisionTransformer.*: it differs in \d+ weights'
    with pytest.raises(UserError, match=message + (".*prefix='backbone" if case == 'whole model' else '')):
        model.init_weights()


@both
def test_fresh_weights_are_drawn_as_by_stock(host):
    states = []
    for kind in (STOCK[host], host):
        torch.manual_seed(0)
        model = kind(**SMALL)
        model.init_weights()
        states.append(model.state_dict())
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


@pytest.mark.parametrize(
    'host, kwargs, message',
    [
        (PyramidVisionTransformer, dict(paddings=[0, 0]), r'paddings=\(0, 0\) has 2 values for 4 stages'),
        (PyramidVisionTransformer, dict(mlp_ratios=[4] * 3), r'mlp_ratios=\(4, 4, 4\) has 3 values for 4 stages'),
        (PyramidVisionTransformer, dict(out_indices=(4,)), 'out_indices goes to 4, but there are 4 stages'),
        (PyramidVisionTransformer, dict(pretrain_img_size=31), r'=\(31, 31\) is smaller than the 32 pixels between'),
        (PyramidVisionTransformer, dict(init_cfg=dict(type='Normal')), "init_cfg={'type': 'Normal'} must be dict"),
        (PyramidVisionTransformerV2, dict(patch_sizes=[4, 2, 2, 2]), "V2 has no setting 'patch_sizes'"),
        (PyramidVisionTransformerV2, dict(num_stages=3), 'num_stages=3 must be a whole number from 4 to 4'),
        (PyramidVisionTransformerV2, dict(token_reduction=dict(type='ToMe')), "'ToMe' cannot work in a backbone of"),
    ],
    ids=str,
)
def test_mistakes_are_told_when_it_is_built(host, kwargs, message):
    with pytest.raises(UserError, match=message):
        host(**{**SMALL, **kwargs})


@pytest.mark.parametrize('size, tokens', [((30, 70), '7x17 tokens in stage 1'), ((3, 64), '0x16 tokens in stage 1')])
def test_an_image_that_fills_no_kernel_is_refused(size, tokens):
    with pytest.raises(UserError, match=f'has {tokens}, fewer than its sr_ratio 8 needs: give larger images'):
        PyramidVisionTransformer(**SMALL)(test_pyramid.images(*size))
    with pytest.raises(UserError, match='has 0x2 tokens in stage 2, fewer than its sr_ratio 1 needs'):
        PyramidVisionTransformer(**SMALL, sr_ratios=[1] * 4)(test_pyramid.images(7, 16))


def test_both_are_found_by_name():
    for host in STOCK:
        assert OURS.get(f'mmtr.{host.__name__}') is host
        assert type(OURS.build(dict(SMALL, type=f'mmtr.{host.__name__}'))) is host


@pytest.mark.slow
def test_mmtr_does_not_need_mmdet_for_its_other_backbones():
    code = """
import sys
sys.modules['mmdet'] = None
import mmtr
from mmtr.models.backbones import SVT
assert 'mmtr.models.backbones.pyramid.pvt' not in sys.modules
"""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['retinanet_pvt-t_fpn_1x_coco', 'retinanet_pvtv2-b0_fpn_1x_coco'])
def test_stock_configs_take_a_reduction(name, scope_of_mmdet):
    cfg = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs/pvt' / f'{name}.py').model
    cfg.backbone.init_cfg = None
    model, x = MODELS.build(cfg).eval(), test_pyramid.images(128, 160, 1)
    with torch.no_grad():
        plain = model.extract_feat(x)
        apply_token_reduction(model, None)
        for out, same in zip(model.extract_feat(x), plain):
            torch.testing.assert_close(out, same, atol=1e-5, rtol=1e-4)
        apply_token_reduction(model, dict(type='GridPool', stage=3, ratio=0.5))
        reduced = model.extract_feat(x)
    assert [out.shape for out in reduced] == [out.shape for out in plain]
    assert not torch.allclose(reduced[1], plain[1], atol=1e-4)
