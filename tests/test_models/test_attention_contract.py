"""What every host's attention promises to every reducer, see ``TokenAttention``."""

import pytest
import torch

from mmtr import UserError
from mmtr.models import backbones
from mmtr.models.backbones import PyramidVisionTransformerV2
from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.ops.attention import attention_weights
from mmtr.reducers.observer import Observer, reducer_of
from tests.test_reducers.test_contract import BACKBONES, eva02, filled, images, vitdet
from tests.test_reducers.test_contract_stages import HOSTS as STAGED


def windowed_eva02(cfg):
    return eva02(cfg, with_cls_token=False, window_size=4, window_layers=(0, 1, 2, 3))


def pyramidvisiontransformerv2(cfg):
    """Which has four stages, unlike the others of stages."""
    settings = dict(embed_dims=8, num_layers=(2, 4, 1, 1), num_heads=(2, 4, 1, 1), sr_ratios=(2, 1, 1, 1))
    return filled(PyramidVisionTransformerV2(**settings, token_reduction=cfg))


def global_vitdet(cfg):
    return vitdet(cfg, global_attn_indexes=(0, 1, 2, 3))


class Listener(Observer):
    """Keeps what the attention of a layer is given: in a Swin, the windows of layer 1 are shifted; SVT's 2 has some."""

    def attention(self, i, attn, x, tokens):
        if i == 1 or i == 2 and tokens.form is not None and tokens.windows is not None:
            self.heard = attn, x.detach(), tokens
        return self.inner.attention(i, attn, x, tokens)


HOSTS = (*BACKBONES, windowed_eva02, global_vitdet, *STAGED, pyramidvisiontransformerv2)
every_host = pytest.mark.parametrize('host', HOSTS, ids=lambda host: host.__name__)


def test_every_host_is_among_them():
    assert {type(host(None)).__name__ for host in HOSTS} >= set(backbones.__all__)


def heard_by(host, height=80, width=112):
    """The attention of a layer, the normed tokens (2, P + N, C) that it is given, and their ``Tokens``.

    Neither the 5x7 patches of these images nor the 10x14 in the second stage of a Swin fill its windows.
    """
    model = host(dict(type='GridPool', ratio=0.0) if host in STAGED else None)
    with torch.no_grad(), reducer_of(model, Listener(model.token_reducer)) as listener:
        model(images(2, height, width))
    return listener.heard


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@every_host
@torch.no_grad()
def test_a_branch_is_its_parts(host):
    attn, x, tokens = heard_by(host)
    assert isinstance(attn, TokenAttention)
    q, k, v = attn.qkv(x)
    assert q.shape == k.shape == v.shape == (*x.shape[:1], q.shape[1], x.shape[1], x.shape[2] // q.shape[1])
    close(attn.attend(q, k, v), attn.branch(x))


@every_host
@torch.no_grad()
def test_a_bias_joins_in(host):
    # What fills windows up is a key that no bias hides: here there is none.
    attn, x, tokens = heard_by(host, 96, 144)
    q, k, v = attn.qkv(x)
    count = x.shape[1]
    close(attn.attend(q, k, v, torch.zeros(1, 1, 1, count)), attn.branch(x))
    # Each token hears itself alone: what comes out is its own value.
    alone = torch.full((1, 1, count, count), -torch.inf).masked_fill(torch.eye(count).bool(), 0.0)
    close(attn.attend(q, k, v, alone), attn.project(v.transpose(1, 2).flatten(2)))
    # A key that the first image hides does not matter there; in the second it does.
    hidden = torch.zeros(2, 1, 1, count)
    hidden[0, ..., 9] = -torch.inf
    other = v.clone()
    other[:, :, 9] += 1
    differs = (attn.attend(q, k, other, hidden) - attn.attend(q, k, v, hidden)).abs().amax((1, 2))
    assert differs[0] < 1e-5 and differs[1] > 1e-3


@every_host
@torch.no_grad()
def test_fewer_tokens_stand_where_they_stood(host):
    attn, x, tokens = heard_by(host)
    prefix = tokens.num_prefix
    kept = torch.tensor([[0, 3, 4, 11, 20], [1, 2, 9, 30, 33]])
    fewer = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, kept.unsqueeze(2).expand(-1, -1, x.shape[2]))], 1)
    if tokens.windows is not None or tokens.form is not None:
        with pytest.raises(UserError, match='needs every token of the grid'):
            attn.qkv(fewer, kept)
        return
    q, k, v = attn.qkv(fewer, kept)
    out = attn.attend(q, k, v, None, kept)
    if attn.split(*attn.qkv(x), None, None)[0][0].shape[2] != x.shape[1]:  # then no longer in windows
        assert out.shape == fewer.shape
        return
    rows = torch.cat([torch.arange(prefix).expand(2, -1), kept + prefix], 1)
    whole = [t.gather(2, rows[:, None, :, None].expand(-1, t.shape[1], -1, t.shape[3])) for t in attn.qkv(x)]
    for found, expected in zip((q, k, v), whole):
        close(found, expected)
    hidden = torch.full((2, x.shape[1]), -torch.inf).scatter(1, rows, 0.0)[:, None, None]
    expected = attn.attend(*attn.qkv(x), hidden).gather(1, rows.unsqueeze(2).expand(-1, -1, x.shape[2]))
    close(out, expected)


@every_host
@torch.no_grad()
def test_methods_that_rank_get_the_logits_that_attention_has(host):
    attn, x, tokens = heard_by(host)
    groups = attn.split(*attn.qkv(x), None, None)
    if len(groups) > 1 or groups[0][0].shape[2] != x.shape[1] or groups[0][1].shape[2] != x.shape[1]:
        return  # within windows there are no logits of all tokens
    q, k, v = attn.qkv(x)
    weights = attention_weights(*attn.positioned(q, k))
    close(attn.project((weights @ v).transpose(1, 2).flatten(2)), attn.branch(x))
    close(attention_weights(*attn.positioned(q[:, :, :1], k)), weights[:, :, :1])
