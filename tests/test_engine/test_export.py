import builtins
import importlib.util
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmtr.engine import export
from mmtr.engine.model import build_model
from mmtr.errors import UserError
from mmtr.ops.dropping import pseudo_random
from mmtr.registry import TOKEN_REDUCERS
from tests.test_reducers.test_contract import CASES, backbone

pytest.importorskip('onnxscript', reason='export needs mmtr[onnx]')
pytest.importorskip('onnxruntime', reason='export needs mmtr[onnx]')

SHAPE = (80, 112)
#: Every method with its defaults, and settings that use operators of their own.
EXPORTED = [None, *(dict(type=name) for name in sorted(TOKEN_REDUCERS.module_dict)
                    if TOKEN_REDUCERS.get(name).fixed_count),
            dict(type='TokenAdapter', score='attn', metric='euclidean', mode='threshold', tau=-1.),
            dict(type='TokenAdapter', merge='max_pool', reference='representative'),
            dict(type='ToMe', mode='progressive')]


def segmentor(token_reduction=None, classes=5, **preprocessor):
    """A segmentor of random weights, with the backbone of the shared tests."""
    torch.manual_seed(0)
    head = dict(type='FCNHead', in_channels=32, channels=32, num_convs=0, concat_input=False, num_classes=classes)
    if classes == 1:
        head.update(num_classes=2, out_channels=1, threshold=0.4)
    model = build_model(Config(dict(model=dict(
        type='mmseg.EncoderDecoder',
        data_preprocessor=dict(type='mmseg.SegDataPreProcessor', mean=[120., 110., 100.], std=[60., 61., 62.],
                               bgr_to_rgb=True, **preprocessor),
        backbone=dict(type='mmtr.VisionTransformer', img_size=(64, 96), embed_dims=32, num_layers=1, num_heads=4),
        decode_head=dict(head, norm_cfg=None), test_cfg=dict(mode='whole')))))
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=0.15)
    model.backbone = backbone(token_reduction)
    return model


def images(count=3):
    """Noise on a gradient of its own in each image."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(3, *SHAPE, generator=generator) * 120 + torch.linspace(0, 40 * (i + 1), SHAPE[1])).to(torch.uint8)
            for i in range(count)]


@pytest.mark.parametrize('token_reduction', EXPORTED, ids=str)
def test_onnx_says_what_pytorch_says(token_reduction, tmp_path):
    model = segmentor(token_reduction)
    export.export_onnx(model, tmp_path / 'a.onnx', SHAPE)
    session = export.session(tmp_path / 'a.onnx')
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ('image', 'tensor(uint8)', ['batch', 3, *SHAPE])]
    alone, together = export.compare_with_onnx(model, session.run, images())
    for found in (alone, together):
        assert found.largest < 1e-4 and found.same_label == 1
    assert (alone.batch, together.batch) == (1, 3)


def test_contract_settings_left_out_are_the_same_operators():
    left_out = {case['type'] for case in CASES} - {case['type'] for case in EXPORTED if case}
    assert left_out == {name for name, method in TOKEN_REDUCERS.module_dict.items() if not method.fixed_count}
