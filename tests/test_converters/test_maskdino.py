"""The release's MaskDINO: converted weights in ``mmtr.MaskDINO``, against a forward pass in the release's layout."""

import maskdino_layout as layout
import maskdino_state as release
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from torch.nn import functional as F

from mmtr import UserError
from mmtr.converters import maskdino as source
from mmtr.models import detectors  # noqa: F401
from mmtr.models.backbones import SwinTransformer

BASE = 8
WIDTHS = [4 * BASE * 2**i for i in range(4)]
# The release's R50, Swin-L's levels, its model of width 1024, more levels than it has, and its semantic ones.
CASES = [
    dict(encoded=3, extra=1, initial='bitmask'),
    dict(encoded=4, extra=1, initial='no'),
    dict(encoded=3, extra=0, order='high2low', initial='no'),
    dict(encoded=2, extra=2, order='high2low', initial='no'),
    dict(encoded=3, extra=0, order='high2low', learned=True),
]


def resnet_state():
    """Weights of a ResNet-50 of an eighth of the width, under detectron2's names."""
    g, state = torch.Generator().manual_seed(0), {}

    def add(name, n_in, n_out, size):
        state[f'{name}.weight'] = torch.randn(n_out, n_in, size, size, generator=g) * (1 / n_in / size**2) ** 0.5
        for i, kind in enumerate(('weight', 'bias', 'running_mean', 'running_var')):
            state[f'{name}.norm.{kind}'] = torch.rand(n_out, generator=g) * 0.2 + (0.9 if i % 3 == 0 else -0.1)

    add('backbone.stem.conv1', 3, BASE, 7)
    width = BASE
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = BASE * 2**stage
        for block in range(blocks):
            at = f'backbone.res{stage + 2}.{block}'
            if block == 0:
                add(f'{at}.shortcut', width, 4 * inner, 1)
            for i, (n_in, n_out, size) in enumerate([(width, inner, 1), (inner, inner, 3), (inner, 4 * inner, 1)], 1):
                add(f'{at}.conv{i}', n_in, n_out, size)
            width = 4 * inner
    return state


def resnet(x, state):
    def conv(x, name, stride=1):
        kernel = state[f'{name}.weight']
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, var, scale, shift = (
            state[f'{name}.norm.{kind}'].view(-1, 1, 1) for kind in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x, maps = F.max_pool2d(conv(x, 'backbone.stem.conv1', 2).relu(), 3, 2, 1), []
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            at, stride = f'backbone.res{stage + 2}.{block}', 2 if stage and not block else 1
            y = conv(x, f'{at}.conv1').relu()
            y = conv(conv(y, f'{at}.conv2', stride).relu(), f'{at}.conv3')
            x = (y + (conv(x, f'{at}.shortcut', stride) if block == 0 else x)).relu()
        maps.append(x)
    return maps


def model_of(notes, **head):
    """The model that the notes ask for."""
    cfg = ConfigDict(
        type='mmtr.MaskDINO',
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(type='ResNet', stem_channels=BASE, base_channels=BASE, norm_cfg=dict(type='BN')),
        panoptic_head=dict(type='mmtr.MaskDINOHead', in_channels=WIDTHS, num_queries=release.QUERIES, **head),
    )
    for key, value in notes.settings.items():
        at, *path = cfg, *key.split('.')
        for name in path[:-1]:
            at = at.setdefault(name, ConfigDict())
        at[path[-1]] = value
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg).eval()


@pytest.mark.parametrize('case', CASES)
def test_converted_weights_give_the_outputs_of_the_release(case):
    case = dict(case)
    initial, order = case.pop('initial', 'no'), case.get('order', 'low2high')
    state = {**resnet_state(), **release.head_state(WIDTHS, **case)}
    converted, notes = source.convert(state)
    head = {} if case.get('learned') else dict(initial_boxes=initial)
    model = model_of(notes, **head)
    model.load_state_dict(converted, strict=True)
    image = torch.randn(1, 3, *layout.IMAGE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = model.extract_feat(image)
        expected = resnet(image, state)
        for ours, theirs in zip(maps, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        scores, boxes, masks = (part[0] for part in model.panoptic_head(maps)[0][-1])
        found = layout.head(list(expected), state, case['encoded'], case['extra'], initial, order)
    # Both list their queries from the best place on.
    for ours, theirs in zip((scores, boxes, masks), found):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert len(boxes) == release.QUERIES and boxes.std(0).min() > 1e-3 and (masks > 0).float().std() > 0


def official_swin(model):
    """A Swin's weights under the names of the release, which has a norm for each map too."""
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in (
            ('stages', 'layers'),
            ('patch_embed.projection', 'patch_embed.proj'),
            ('attn.w_msa', 'attn'),
            ('ffn.layers.0.0', 'mlp.fc1'),
            ('ffn.layers.1', 'mlp.fc2'),
        ):
            key = key.replace(ours, theirs)
        if 'downsample' in key:  # (row, column) of a neighbour: ours 00 01 10 11 for each channel, theirs 00 10 01 11
            value = value.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)
        state[f'backbone.{key}'] = value
    return state


def test_weights_of_a_swin_are_all_there():
    model = SwinTransformer(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[2, 2, 4, 4], window_size=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    state = {**official_swin(model), **release.head_state([8, 16, 32, 64], encoded=4, extra=1)}
    converted, notes = source.convert(state)
    found = {key.removeprefix('backbone.'): value for key, value in converted.items() if key.startswith('backbone.')}
    assert found.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(found[key], value), key
    assert notes.settings['backbone.depths'] == (2, 2, 2, 2) and notes.settings['backbone.window_size'] == 4
    assert notes.settings['panoptic_head.pixel_decoder.num_encoder_levels'] == 4


def test_notes_name_the_config_and_what_is_not_in_the_file():
    state = {**resnet_state(), **release.head_state(WIDTHS, encoded=3, extra=1)}
    _, notes = source.convert(state)
    assert notes.settings['panoptic_head.num_things_classes'] == release.CLASSES and notes.fits is None
    assert "initial_boxes='bitmask' or 'mask2box'" in notes.remarks[0]
    for classes, learned, fits, stuff in (
        (80, False, 'maskdino_r50_coco-instance.py', 0),
        (133, False, 'maskdino_r50_coco-panoptic.py', 53),
        (150, True, 'maskdino_r50_ade20k-semantic.py', 150),
        (19, True, 'maskdino_r50_cityscapes-semantic.py', 19),
    ):
        some = dict(state, **release.head_state(WIDTHS, encoded=3, extra=1))
        some[f'{release.PREDICTOR}.label_enc.weight'] = torch.zeros(classes, release.CHANNELS)
        for kind, shape in dict(weight=(classes + learned, release.CHANNELS), bias=(classes + learned,)).items():
            some[f'{release.PREDICTOR}.class_embed.{kind}'] = torch.zeros(shape)
        notes = source.convert(some)[1]
        assert notes.fits == fits and notes.settings['panoptic_head.num_stuff_classes'] == stuff
        assert notes.settings['panoptic_head.softmax'] == learned


@pytest.mark.parametrize(
    'change, said',
    [
        (
            lambda state: state.pop(f'{release.PREDICTOR}.decoder.layers.1.norm2.bias'),
            'lacks keys .*layers.1.norm2.bias',
        ),
        (
            lambda state: state.update({f'{release.PIXEL}.extra': torch.zeros(1)}),
            'keys that an official MaskDINO does not',
        ),
        (
            lambda state: state.update(
                {f'{release.PREDICTOR}.bbox_embed.1.layers.0.bias': torch.ones(release.CHANNELS)}
            ),
            'differ: in an official MaskDINO all layers share one box head',
        ),
        (lambda state: state.update({f'{release.PREDICTOR}.enc_output.weight': torch.zeros(3, 3)}), 'has shape'),
        (lambda state: [state.pop(key) for key in list(state) if '.res5.2.' in key], r'\(3, 4, 6, 2\) blocks'),
        (lambda state: state.pop(f'{release.PIXEL}.transformer.level_embed'), 'lacks .*level_embed'),
    ],
)
def test_another_model_is_refused(change, said):
    state = {**resnet_state(), **release.head_state(WIDTHS, encoded=3, extra=1)}
    change(state)
    with pytest.raises(UserError, match=said):
        source.convert(state)


def test_weights_are_kept_under_model(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'other.pth')
    with pytest.raises(UserError, match="keeps its weights under 'model'"):
        source.read(tmp_path / 'other.pth')
