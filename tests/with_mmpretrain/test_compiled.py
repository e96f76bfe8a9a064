"""mmpretrain's hosts compile without a graph break, and say in ONNX what they say in PyTorch."""

import pytest

from tests.test_engine.test_hosts_compiled import REDUCTION, check_compiled, check_exported

ARCH = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)
PLAIN = dict(arch=ARCH, img_size=(64, 96), out_type='featmap', out_indices=(1,))
HOSTS = dict(
    BEiTViT=PLAIN,
    ViTEVA02=PLAIN,
    ViTSAM=dict(PLAIN, arch=dict(ARCH, global_attn_indexes=(1,)), window_size=3, out_channels=32),
    SwinTransformerV2=dict(
        arch=dict(embed_dims=32, depths=(2,), num_heads=(2,), extra_norm_every_n_blocks=0),
        out_indices=(0,),
        window_size=4,
        pretrained_window_sizes=(8,),
    ),
)


@pytest.mark.parametrize('name', HOSTS)
def test_compiled_and_in_onnx_it_says_the_same(name, tmp_path):
    host = dict(HOSTS[name], type=f'mmtr.{name}')
    for reduction in (None, REDUCTION):
        check_compiled(host, reduction)
    check_exported(host, tmp_path / 'a.onnx')
