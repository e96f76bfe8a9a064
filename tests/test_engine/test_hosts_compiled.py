"""A host of each kind compiles without a graph break, and says in ONNX what it says in PyTorch."""

import pytest
import torch
from torch import nn

from mmtr import UserError
from mmtr.export import onnx as export
from tests.test_engine.test_export import PLAIN, SHAPE, images, needs_onnx, segmentor

STAGE = dict(num_heads=(2,), strides=(4,), sr_ratios=(2,), out_indices=(0,))
PVT = dict(STAGE, embed_dims=16, num_stages=1, num_layers=(2,))
TWINS = dict(STAGE, embed_dims=(32,), depths=(2,), mlp_ratios=(4,), patch_sizes=(4,), qkv_bias=True)
HOSTS = dict(
    BEiT=PLAIN,
    MAE=PLAIN,
    ViTDet=dict(PLAIN, pretrain_img_size=48, window_size=3, global_attn_indexes=(1,)),
    MixVisionTransformer=dict(PVT, patch_sizes=(7,)),
    # Its table of 10x10 positions becomes one of 20x28.
    PyramidVisionTransformer=dict(PVT, patch_sizes=(7,), paddings=(3,), mlp_ratios=(4,), pretrain_img_size=70),
    PyramidVisionTransformerV2=dict(
        embed_dims=16, num_layers=(2, 1, 1, 1), num_heads=(2, 1, 1, 1), sr_ratios=(2, 1, 1, 1), out_indices=(0,)
    ),
    PCPVT=TWINS,
    SVT=dict(TWINS, windiow_sizes=(6,)),
)


#: The first layer of a host is plain, the second is reduced.
REDUCTION = dict(type='GridPool', layers=(1, 2))


def check_compiled(host, reduction):
    """Compile ``host`` without a graph break."""
    model, x = segmentor(reduction, host).backbone, torch.stack(images(2)).float() / 60 - 2
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')(x)
        torch.testing.assert_close(compiled, model(x), atol=1e-5, rtol=1e-5)


def check_exported(host, path):
    """Export ``host``, and compare what the file says with PyTorch."""
    model = segmentor(REDUCTION, host)
    export.export_onnx(model, path, SHAPE)
    for found in export.compare_with_onnx(model, export.session(path).run, images()):
        assert found.largest < 1e-4 and found.same_label > 0.999


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize('name', HOSTS)
def test_compiled_and_in_onnx_it_says_the_same(name, tmp_path):
    host = dict(HOSTS[name], type=f'mmtr.{name}')
    check_compiled(host, None)  # with reductions: tests/test_reducers
    check_exported(host, tmp_path / 'a.onnx')


@needs_onnx
@pytest.mark.slow
def test_a_position_table_is_resized_as_by_torch(tmp_path):
    # Computed by onnx's reference implementation, this one would be wrong.
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 32, 10, 10, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            table = nn.functional.interpolate(self.table, (14, 20), mode='bilinear')
            return [table + x.mean((1, 2, 3), keepdim=True)]

    model = segmentor()
    model.backbone = Table()
    export.export_onnx(model, tmp_path / 'a.onnx', SHAPE)
    for found in export.compare_with_onnx(model, export.session(tmp_path / 'a.onnx').run, images()):
        assert found.largest < 1e-4


@needs_onnx
@pytest.mark.slow
def test_a_model_that_takes_one_number_of_images_is_refused(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return [x.mean(1, keepdim=True).repeat(1, 32, 1, 1) + x.new_zeros(len(x), 1, 1, 1)]

    model = segmentor()
    model.backbone = Fixed()
    with pytest.raises(UserError, match='^The model cannot be exported: it uses the number of images as a constant'):
        export.export_onnx(model, tmp_path / 'a.onnx', SHAPE)
