import pytest
import torch

from mmtr import UserError
from mmtr.ops.attention import attention, check_backend, received_attention


def attend_slowly(q, k, v):
    out = torch.empty(*q.shape[:3], v.shape[-1])
    for b, h, n in [(b, h, n) for b in range(q.shape[0]) for h in range(q.shape[1]) for n in range(q.shape[2])]:
        logits = torch.stack([q[b, h, n] @ key for key in k[b, h]]) / q.shape[-1]**0.5
        share = logits.exp() / logits.exp().sum()
        out[b, h, n] = (share.unsqueeze(1) * v[b, h]).sum(0)
    return out


@pytest.mark.parametrize('backend', ['auto', 'sdpa', 'math'])
def test_backends_compute_attention(backend):
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    torch.testing.assert_close(attention(q, k, v, backend), attend_slowly(q, k, v))


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


def test_unknown_backend_is_refused():
    with pytest.raises(UserError, match="attn_backend='flash' is unknown: choose one of auto, sdpa"):
        check_backend('flash')


@pytest.mark.skipif(torch.cuda.is_available(), reason='xformers could run on this GPU')
def test_xformers_without_a_gpu_is_refused():
    with pytest.raises(UserError, match="attn_backend='xformers' needs"):
        check_backend('xformers')
