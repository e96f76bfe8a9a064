import pytest
import torch
from mmseg.registry import MODELS

from mmtr import UserError
from mmtr.models.decode_heads import SimpleDecoder


def head(**kwargs):
    torch.manual_seed(0)
    return SimpleDecoder(in_channels=12, channels=8, **{'num_classes': 5, **kwargs}).eval()


def enlarged(x, scale):
    """Bilinear enlargement, pixel by pixel: centres of pixels, the border repeated."""
    height, width = x.shape[2:]
    out = torch.empty(*x.shape[:2], scale * height, scale * width)
    for row in range(scale * height):
        for column in range(scale * width):
            y, z = (min(max((n + 0.5) / scale - 0.5, 0), size - 1) for n, size in ((row, height), (column, width)))
            top, left = int(y), int(z)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = x[:, :, top, left] * (1 - z + left) + x[:, :, top, right] * (z - left)
            lower = x[:, :, bottom, left] * (1 - z + left) + x[:, :, bottom, right] * (z - left)
            out[:, :, row, column] = upper * (1 - y + top) + lower * (y - top)
    return out


@pytest.mark.parametrize('scale', [4, 1, 3])
def test_is_its_formula(scale):
    ours, x = head(scale_factor=scale), torch.randn(2, 12, 3, 5)
    state = ours.state_dict()
    for name in ('conv', 'fusion_conv'):
        for key in ('weight', 'bias', 'running_mean'):
            state[f'{name}.bn.{key}'].normal_()
        state[f'{name}.bn.running_var'].uniform_(0.5, 2.0)
    torch.nn.init.normal_(ours.conv_seg.weight)

    def block(x, name):
        shape = (1, -1, 1, 1)
        y = torch.einsum('oc,bchw->bohw', state[f'{name}.conv.weight'][:, :, 0, 0], x)
        mean, var, weight, bias = (
            state[f'{name}.bn.{key}'].view(shape) for key in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return ((y - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    y = block(enlarged(block(x, 'conv'), scale), 'fusion_conv')
    expected = torch.einsum('oc,bchw->bohw', ours.conv_seg.weight[:, :, 0, 0], y) + ours.conv_seg.bias.view(1, -1, 1, 1)
    with torch.no_grad():
        # The last of the maps is the one that counts.
        out = ours([torch.zeros(2, 12, 3, 5), x])
    assert out.shape == (2, 5, 3 * scale, 5 * scale)
    torch.testing.assert_close(out, expected)


def test_settings_of_the_paper_are_the_defaults():
    ours = MODELS.build(dict(type='mmtr.SimpleDecoder', in_channels=768, num_classes=19))
    # 37 patches a side become 148 pixels.
    assert ours.eval()([torch.zeros(1, 768, 37, 37)]).shape == (1, 19, 148, 148)
    assert sum(p.numel() for p in ours.parameters()) == 768 * 256 + 256 * 256 + 4 * 256 + 256 * 19 + 19
    assert ours.dropout.p == 0.1 and isinstance(ours.dropout, torch.nn.Dropout2d)


def test_norm_is_a_key():
    ours = head(norm_cfg=dict(type='GN', num_groups=2))
    assert {type(m) for m in ours.modules() if 'Norm' in type(m).__name__} == {torch.nn.GroupNorm}


def test_binary_task_has_one_map():
    assert head(num_classes=2, out_channels=1, threshold=0.5)([torch.zeros(1, 12, 2, 2)]).shape == (1, 1, 8, 8)


@pytest.mark.parametrize('scale', [0, 2.5, True])
def test_a_scale_that_cannot_work_is_refused(scale):
    with pytest.raises(UserError, match=f'scale_factor={scale}'):
        head(scale_factor=scale)
