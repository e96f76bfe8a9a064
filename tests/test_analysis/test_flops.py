import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from mmseg.models.backbones import VisionTransformer
from mmseg.models.decode_heads import SegmenterMaskTransformerHead
from torch import nn
from torch.nn import functional as F

from mmtr.analysis.flops import _HANDLERS, count_flops
from mmtr.apis import apply_token_reduction
from mmtr.models import backbones

CLASSES = 7


def segmenter(embed_dims, layers, heads, size):
    backbone = VisionTransformer(
        img_size=size,
        patch_size=16,
        embed_dims=embed_dims,
        num_layers=layers,
        num_heads=heads,
        final_norm=True,
        norm_cfg=dict(type='LN'),
    )
    head = SegmenterMaskTransformerHead(
        in_channels=embed_dims,
        channels=embed_dims,
        num_classes=CLASSES,
        num_layers=2,
        num_heads=heads,
        embed_dims=embed_dims,
    )
    return nn.Sequential(backbone, head)


def segmenter_by_hand(embed_dims, layers, patches, classes):
    """Multiply-adds of a Segmenter with a mask head on images of ``patches`` patches of 16x16 pixels."""
    c = embed_dims

    def encoder_layer(n):
        qkv, attention, projection, ffn = 3 * n * c * c, 2 * n * n * c, n * c * c, 2 * n * c * 4 * c
        norms = 2 * 5 * n * c
        return qkv + attention + projection + ffn + norms

    backbone = 3 * 16 * 16 * c * patches + layers * encoder_layer(patches + 1) + 5 * (patches + 1) * c
    projections = 2 * patches * c * c + classes * c * c
    norms = 5 * (patches + classes) * c + 5 * patches * classes
    return backbone + 2 * encoder_layer(patches + classes) + projections + norms + patches * classes * c


class Attend(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class AttendByHand(nn.Module):
    def forward(self, q, k, v):
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def test_formula_gives_671_g_for_vit_large_at_640():
    assert segmenter_by_hand(1024, 24, 40 * 40, 150) / 1e9 == pytest.approx(671, rel=0.01)


def test_stock_segmenter_equals_the_formula():
    model = segmenter(48, 3, 4, (64, 96))
    count = count_flops(model, torch.randn(1, 3, 64, 96))
    assert count.total == segmenter_by_hand(48, 3, 4 * 6, CLASSES)
    assert count.by_module['0'] + count.by_module['1'] == count.by_module[''] == count.total
    assert sum(count.by_operator.values()) == count.total
    assert count.unsupported == {}
    assert count_flops(model[0], torch.randn(1, 3, 64, 96)).total == count.by_module['0']


def test_fused_segmenter_counts_as_stock():
    model, image = segmenter(48, 3, 4, (64, 96)), torch.randn(1, 3, 64, 96)
    stock = count_flops(model, image)
    model[0] = apply_token_reduction(model[0], None)
    fused = count_flops(model, image)
    assert 'scaled_dot_product_attention' in fused.by_operator
    assert fused.total == stock.total


def test_other_counters_count_attention_by_its_two_products():
    fused, by_hand = (
        backbones.VisionTransformer(
            img_size=(64, 96),
            embed_dims=48,
            num_layers=3,
            num_heads=4,
            attn_backend=backend,
            token_reduction=dict(type='TokenAdapter', layers=(1, 3)),
        )
        for backend in ('auto', 'math')
    )
    fused.eval()
    by_hand.eval()
    image = torch.randn(1, 3, 64, 96)
    ours = count_flops(fused, image)
    found = FlopCountAnalysis(by_hand, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert found.total() == ours.total
    found = FlopCountAnalysis(fused, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert found.total() == ours.total - ours.by_operator['scaled_dot_product_attention'] < ours.total


def test_fused_attention_counts_both_products():
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 11, 8), torch.randn(2, 3, 11, 16)
    count = count_flops(Attend(), (q, k, v))
    assert count.total == 2 * 3 * 5 * 11 * (8 + 16)
    assert count.total == count_flops(AttendByHand(), (q, k, v)).total


def test_kernels_with_heads_last_count_the_same():
    # These kernels run on CUDA only, so their inputs are given as a graph holds them.
    tensors = dict(q='2, 5, 3, 8', k='2, 11, 3, 8', v='2, 11, 3, 16')
    graph = torch._C.parse_ir(
        'graph({}):\n  return (%q)\n'.format(
            ', '.join(
                f'%{name} : Float({shape}, strides=[1, 1, 1, 1], requires_grad=0, device=cpu)'
                for name, shape in tensors.items()
            )
        )
    )
    for kernel in ('aten::_flash_attention_forward', 'aten::_efficient_attention_forward'):
        assert _HANDLERS[kernel](list(graph.inputs()), []) == 2 * 3 * 5 * 11 * (8 + 16)


@pytest.mark.parametrize('need_weights', [False, True])
def test_native_multi_head_attention_counts_as_its_parts(need_weights):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x):
            return self.attn(x, x, x, need_weights=need_weights)[0]

    count = count_flops(Attention(), torch.randn(2, 7, 32))
    assert count.total == 2 * (4 * 7 * 32 * 32 + 2 * 7 * 7 * 32)


def test_matching_of_a_reducer_is_counted_and_choosing_is_free():
    class Match(nn.Module):
        def forward(self, a, b):
            nearest = (a @ b.transpose(1, 2)).argsort(2)[..., 0]
            far = torch.cdist(a, b).topk(2, dim=2).indices
            scattered = torch.zeros_like(a).scatter_add(1, nearest.unsqueeze(-1).expand_as(a), a)
            return scattered + far.sum()

    count = count_flops(Match(), (torch.randn(2, 5, 8), torch.randn(2, 5, 8)))
    assert count.by_operator == {'matmul': 2 * 5 * 5 * 8, 'cdist': 2 * 5 * 5 * 8}
    assert count.unsupported == {}


def test_counts_the_rows_that_a_bag_sums():
    class Bags(nn.Module):
        def forward(self, rows, index, parts):
            return nn.functional.embedding_bag(index, rows, mode='sum', per_sample_weights=parts)

    count = count_flops(Bags(), (torch.randn(20, 6), torch.randint(20, (3, 4)), torch.rand(3, 4)))
    assert count.by_operator == {'embedding_bag': 3 * 4 * 6}
    assert count.unsupported == {}


def test_an_operator_that_is_not_counted_is_named():
    class Decompose(nn.Module):
        def forward(self, x):
            return torch.linalg.qr(x)[0]

    count = count_flops(Decompose(), torch.randn(4, 4))
    assert count.total == 0
    assert count.unsupported == {'aten::linalg_qr': 1}


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.BatchNorm1d(4)).train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    count_flops(model, torch.randn(5, 3))
    with pytest.raises(RuntimeError):
        count_flops(model, torch.randn(5, 2))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
