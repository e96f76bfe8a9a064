"""EoMT compiled and in an ONNX file, plain and reduced, in layers with queries too."""

from importlib.util import find_spec

import pytest
import torch

from mmtr.export import onnx as export

from .test_eomt import SIDE, eomt, images, predictions
from .test_eomt_segmentor import segmentor

REDUCED = [
    ({}, None),
    ({}, dict(type='TokenAdapter')),
    (dict(reduce_with_queries=True), dict(type='TokenAdapter')),
    (dict(reduce_with_queries=True), dict(type='ToMe', mode='progressive', r=4)),
]
every_reduction = pytest.mark.parametrize('head, reduction', REDUCED, ids=str)


@pytest.mark.slow
@every_reduction
def test_backbone_and_head_compile_without_a_graph_break(head, reduction):
    model = eomt(head, token_reduction=reduction)
    (expected,) = predictions(model, images())
    torch.compiler.reset()
    for part in (model.backbone, model.panoptic_head):
        part.compile(fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        classes, masks = model.panoptic_head(model.extract_feat(images()))
    for a, b in zip((classes[0], masks[0]), expected):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec('onnxruntime'), reason='onnxruntime is not installed')
@pytest.mark.parametrize(
    'head, reduction, semantic', [*((*each, False) for each in REDUCED), (*REDUCED[1], True)], ids=str
)
def test_onnx_says_what_pytorch_says(head, reduction, semantic, tmp_path):
    if semantic:
        model = segmentor(token_reduction=reduction)
    else:
        model = eomt(head, mean=(120.0,) * 3, std=(60.0,) * 3, token_reduction=reduction)
    export.export_onnx(model, tmp_path / 'a.onnx', (SIDE, SIDE))
    session = export.session(tmp_path / 'a.onnx')
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 255, (3, SIDE, SIDE), generator=generator).to(torch.uint8) for _ in range(3)]
    for found in export.compare_with_onnx(model, session.run, pixels):
        assert found.largest < 1e-3 and found.same_label > 0.999
    assert len(session.get_outputs()) == (2 if semantic else 3)
