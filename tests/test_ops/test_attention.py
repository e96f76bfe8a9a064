import sys
from types import SimpleNamespace

import pytest
import torch

from mmtr import UserError
from mmtr.ops.attention import attention, check_backend, class_attention, received_attention


def attend_slowly(q, k, v, bias=None):
    out = torch.empty(*q.shape[:3], v.shape[-1])
    for b, h, n in [(b, h, n) for b in range(q.shape[0]) for h in range(q.shape[1]) for n in range(q.shape[2])]:
        logits = torch.stack([q[b, h, n] @ key for key in k[b, h]]) / q.shape[-1] ** 0.5
        if bias is not None:
            logits = logits + bias[b, h, n]
        share = logits.exp() / logits.exp().sum()
        out[b, h, n] = (share.unsqueeze(1) * v[b, h]).sum(0)
    return out


@pytest.mark.parametrize('backend', ['auto', 'sdpa', 'math'])
def test_backends_compute_attention(backend):
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    torch.testing.assert_close(attention(q, k, v, backend), attend_slowly(q, k, v))


@pytest.mark.parametrize('backend', ['sdpa', 'math', 'xformers'])
@pytest.mark.parametrize('shape', [(2, 1, 1, 7), (2, 3, 5, 7)])
def test_backends_add_a_bias(backend, shape, monkeypatch):
    monkeypatch.setitem(sys.modules, 'xformers.ops', SimpleNamespace(memory_efficient_attention=as_xformers))
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    bias = torch.randn(shape)
    bias[..., 2] = -torch.inf
    expected = attend_slowly(q, k, v, bias.expand(2, 3, 5, 7))
    torch.testing.assert_close(attention(q, k, v, backend, bias=bias), expected)
    k[:, :, 2] = v[:, :, 2] = 1e3
    torch.testing.assert_close(attention(q, k, v, backend, bias=bias), expected)


def as_xformers(q, k, v, attn_bias, p):
    """Takes what xformers takes: heads last, a bias of the full shape whose rows start at multiples of 8."""
    assert attn_bias.shape == (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    assert all(stride % 8 == 0 for stride in attn_bias.stride()[:3]) and p == 0
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return attend_slowly(q, k, v, attn_bias).transpose(1, 2)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backend', ['sdpa', 'math'])
def test_a_float32_bias_keeps_the_dtype(backend, dtype):
    q, k, v = torch.randn(3, 1, 2, 5, 8, dtype=dtype)
    assert attention(q, k, v, backend, bias=torch.zeros(1, 1, 1, 5)).dtype == dtype


@pytest.mark.parametrize('backend', ['sdpa', 'math'])
def test_dropout_keeps_the_mean(backend):
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 2000, 4), torch.zeros(1, 1, 50, 4), torch.ones(1, 1, 50, 4)
    out = attention(q, k, v, backend, dropout=0.5)
    assert out.std() > 0.05 and abs(out.mean() - 1) < 0.02


def test_received_attention_is_the_mean_over_heads_and_queries():
    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
    eye = torch.eye(7).expand(2, 3, 7, 7)
    torch.testing.assert_close(received_attention(q, k), attend_slowly(q, k, eye).mean((1, 2)))
    bias = 3 * torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(received_attention(q, k, bias), attend_slowly(q, k, eye, bias).mean((1, 2)))
    torch.testing.assert_close(class_attention(q, k, bias[:, :, :1]), attend_slowly(q, k, eye, bias)[:, :, 0].mean(1))


def test_unknown_backend_is_refused():
    with pytest.raises(UserError, match="attn_backend='flash' is unknown: choose one of auto, sdpa"):
        check_backend('flash')


@pytest.mark.skipif(torch.cuda.is_available(), reason='xformers could run on this GPU')
def test_xformers_without_a_gpu_is_refused():
    with pytest.raises(UserError, match="attn_backend='xformers' needs"):
        check_backend('xformers')
