"""mmpretrain's SwinTransformerV2: as stock without a reduction, its bias once reduced, and what is refused."""

import copy
import math

import pytest
import torch
from mmpretrain.models.backbones import SwinTransformerV2 as Stock
from torch import nn
from torch.nn import functional as F

from mmtr import UserError, apply_peft, apply_token_reduction
from mmtr.declared import declarations
from mmtr.reducers.observer import Observer, reducer_of
from mmtr.registry import MODELS
from tests.hostile_values import HOSTILE, fits

Own = MODELS.get('SwinTransformerV2')
ARCH = dict(embed_dims=8, depths=(2, 4), num_heads=(2, 4), extra_norm_every_n_blocks=2)
SMALL = dict(arch=ARCH, img_size=64, window_size=4, out_indices=(0, 1))


def drawn(model):
    """Weights under which a mistake would show; one head of each layer has the largest factor of its cosines."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1 if 'norm' in name and 'weight' in name else 0, 0.3, generator=generator)
        if name.endswith('logit_scale'):
            parameter.data += torch.linspace(1, 2, len(parameter)).view(-1, 1, 1)
    model.eval()  # mmpretrain's returns None
    return model


def built(kind, **given):
    return drawn(kind(**copy.deepcopy({**SMALL, **given})))


def images(height=80, width=112, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    'given, shapes',
    [
        (dict(), [(64, 64), (64, 100), (57, 130), (32, 32), (32, 64)]),
        (dict(pad_small_map=True, window_size=6), [(64, 64), (48, 96), (57, 131), (5, 9)]),
        (dict(pad_small_map=True), [(32, 32), (16, 64)]),
        (dict(window_size=(8, 3), pretrained_window_sizes=(5, 0)), [(64, 96)]),
        (dict(use_abs_pos_embed=True, norm_cfg=None, out_indices=(1,)), [(64, 64), (80, 72)]),
        (dict(arch=dict(ARCH, extra_norm_every_n_blocks=0), patch_size=(4, 8), patch_cfg=dict(padding=1)), [(96, 136)]),
        (
            dict(stage_cfgs=dict(block_cfgs=dict(attn_cfgs=dict(qkv_bias=False), ffn_cfgs=dict(add_identity=True)))),
            [(64, 80)],
        ),
        (dict(stage_cfgs=dict(downsample_cfg=dict(kernel_size=3, padding='same', use_post_norm=False))), [(64, 96)]),
    ],
    ids=str,
)
def test_without_a_reduction_it_is_stock(given, shapes):
    own, stock = built(Own, **given), built(Stock, **given)
    twin = apply_token_reduction(stock, None)
    assert list(own.state_dict()) == list(stock.state_dict()) == list(twin.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(own.buffers(), stock.buffers()))
    for shape in shapes:
        with torch.no_grad():
            expected, *found = (model(images(*shape)) for model in (stock, own, twin))
            exact = [model.double()(images(*shape).double()) for model in (stock, own)]
        # These weights are large, so that single precision rounds more than with those that a model has.
        torch.testing.assert_close(*exact, atol=1e-9, rtol=1e-9)
        for outs in found:
            torch.testing.assert_close(outs, expected, atol=1e-4, rtol=1e-4)
            assert all(out.is_contiguous() for out in outs)
        for model in (own, stock):
            model.float()
        grids = [tuple(out.shape[2:]) for out in expected]
        assert own.stage_grids(shape)[-len(grids) :] == grids


@pytest.mark.parametrize('with_cp', [False, True])
def test_training_is_that_of_stock(with_cp):
    grads = []
    for kind in (Stock, Own):
        model = built(kind, drop_rate=0.1, drop_path_rate=0.3, with_cp=with_cp)
        model.train()
        torch.manual_seed(1)
        sum(out.square().mean() for out in model(images(50, 70, 4))).backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-3)
    assert all(grads[1][name].abs().sum() > 0 for name in grads[1] if 'cpb_mlp' in name or 'logit_scale' in name)


def attention_by_pairs(module, x, pieces, places):
    """Of one image: ``x`` (N, C) in pieces, lists of its tokens or None for padding, at ``places`` (row, column)."""
    heads, side = module.num_heads, module.window_size[0]
    out = torch.full_like(x, torch.nan)
    bias = torch.cat([module.q_bias, torch.zeros_like(module.q_bias), module.v_bias])
    unit = 8 / (3 - 1)  # of the window of pretraining
    assert side == 4
    for piece in pieces:
        inputs = torch.stack([torch.zeros(x.shape[1]) if n is None else x[n] for n, _ in piece])
        q, k, v = (inputs @ module.qkv.weight.T + bias).view(len(piece), 3, heads, -1).permute(1, 2, 0, 3)
        where = torch.tensor([place if n is None else places[n] for n, place in piece]).float()
        offsets = where.unsqueeze(1) - where
        coordinates = offsets.sign() * torch.log2(offsets.abs() * unit + 1) / math.log2(8)
        cosines = F.cosine_similarity(q.unsqueeze(2), k.unsqueeze(1), dim=-1)
        logits = cosines * module.logit_scale.exp().clamp(max=100)
        logits = logits + 16 * module.cpb_mlp(coordinates).sigmoid().permute(2, 0, 1)
        found = (logits.softmax(-1) @ v).transpose(0, 1).flatten(1) @ module.proj.weight.T + module.proj.bias
        for (n, _), row in zip(piece, found):
            if n is not None:
                out[n] = row
    assert not out.isnan().any()
    return out


class Listener(Observer):
    """Keeps what the attention of each reduced layer is given."""

    heard = ()

    def attention(self, i, attn, x, tokens):
        self.heard = (*self.heard, (attn, x, tokens))
        return self.inner.attention(i, attn, x, tokens)


@pytest.mark.parametrize('cfg', [dict(type='TokenAdapter', ratio=0.25), dict(type='Random', ratio=0.44)], ids=str)
@pytest.mark.parametrize('grid', [(8, 12), (7, 10)], ids=str)
@torch.no_grad()
def test_the_bias_is_that_between_the_patches_where_tokens_stand(cfg, grid):
    model = built(Own, pretrained_window_sizes=(0, 3), token_reduction=dict(cfg, stage=2))
    span = dict(layers=(1, 4)) if cfg['type'] == 'TokenAdapter' else dict(layer=1)
    model.set_token_reduction(dict(cfg, stage=2, **span))
    with reducer_of(model, Listener(model.token_reducer)) as listener:
        model(images(grid[0] * 8, grid[1] * 8))
    shifts = []
    for attn, x, tokens in listener.heard:
        if tokens.index is None:
            continue
        (height, width), side = tokens.windows.grid, 3
        assert tokens.windows.window == (side, side)
        shift = side // 2 * attn.shifted
        shifts.append(shift)
        padded = [-(-n // side) * side for n in (height, width)]
        # Rows 0 to 2 of a window of three stand for 0 to 3: what pads it is at the centres, 0, 2 and 3.
        even = [p // side * 4 + (0, 2, 3)[p % side] for p in range(max(padded))]
        # Windows that the shift wraps around fall apart, so a first piece of the length of the shift is the same.
        found = {}
        for r in range(padded[0]):
            for c in range(padded[1]):
                n = r * width + c if r < height and c < width else None
                key = tuple((p - shift) // side if shift else p // side for p in (r, c))
                found.setdefault(key, []).append((n, (even[r], even[c])))
        for image in range(2):
            places = [divmod(p, tokens.grid[1]) for p in tokens.index[image].tolist()]
            expected = attention_by_pairs(attn.module, x[image], found.values(), places)
            torch.testing.assert_close(attn.branch(x)[image], expected, atol=1e-5, rtol=1e-4)
    assert shifts == [1, 0, 1]


@pytest.mark.parametrize('stage', [1, 2])
@torch.no_grad()
def test_reduced_by_key_and_by_function_is_one_model(stage):
    reduction = dict(type='GridPool', stage=stage, layers=(0, 1))
    stock, own = built(Stock), built(Own, token_reduction=reduction)
    twin = apply_token_reduction(stock, reduction)
    assert all(a is b for a, b in zip(stock.parameters(), twin.parameters()))
    torch.testing.assert_close(twin(images()), own(images()))
    changed = [(a - b).abs().max() > 1e-3 for a, b in zip(own(images()), stock(images()))]
    assert changed == [stage == 1, True]
    other = copy.deepcopy(twin)
    torch.testing.assert_close(other(images()), own(images()))


def test_lora_learns_beside_frozen_weights_and_is_merged():
    model = apply_peft(built(Stock), dict(type='LoRA', rank=2, targets=['qkv', 'proj', 'fc1', 'fc2']))
    with torch.no_grad():
        torch.testing.assert_close(model(images()), built(Own)(images()))
    model.train()
    sum(out.sum() for out in model(images())).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and all(name.startswith(('peft.', 'norm')) for name in trained)
    for name, parameter in model.named_parameters():
        if '.up.' in name:
            nn.init.normal_(parameter, std=0.1)
    model.eval()
    merged = built(Stock)
    assert not merged.load_state_dict(model.peft.merged_state_dict(model), strict=False).unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(merged(images()), model(images()), atol=1e-4, rtol=1e-4)


def test_frozen_stages_are_those_of_stock():
    own, stock = built(Own, frozen_stages=0), built(Stock, frozen_stages=0)
    for model in (own, stock):
        model.train()
    assert [p.requires_grad for p in own.parameters()] == [p.requires_grad for p in stock.parameters()]
    assert not own.stages[0].training and own.stages[1].training


def test_a_pretrained_file_of_another_window(tmp_path):
    state = {f'backbone.{name}': value for name, value in built(Stock).state_dict().items()}
    torch.save(dict(state_dict={**state, 'head.fc.weight': torch.ones(3, 16)}), tmp_path / 'file.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'))
    model = Own(**dict(SMALL, window_size=8, init_cfg=init))
    model.init_weights()
    for name, value in built(Stock).named_parameters():
        torch.testing.assert_close(model.state_dict()[name], value)
    model = Own(**dict(SMALL, arch=dict(ARCH, embed_dims=16), init_cfg=init))
    with pytest.raises(UserError, match=r'is not of this SwinTransformerV2: it differs in \d+ weights'):
        model.init_weights()


@pytest.mark.parametrize(
    'given, said',
    [
        (dict(arch='enormous'), "^arch='enormous' must be one of t, tiny, .*, or dict"),
        (dict(arch=dict(ARCH, num_heads=(2, 4, 4))), r'^num_heads=\(2, 4, 4\) has 3 values for the 2 stages'),
        (dict(arch=dict(ARCH, num_heads=(2, 3))), '^embed_dims=16 and num_heads=3 do not fit'),
        (dict(window_size=(4,)), r'^window_size=\(4,\) has 1 values for the 2 stages'),
        (dict(window_size=1), '^window_size=1 must be '),
        (dict(pretrained_window_sizes=(1, 0)), '^pretrained_window_sizes=.* has a window of one token'),
        (dict(stage_cfgs=[{}]), r'^stage_cfgs=\[\{\}\] has 1 values'),
        (dict(stage_cfgs=dict(block_cfgs=dict(attn_cfgs=dict(shift_size=1)))), '^stage_cfgs gives the blocks'),
        (dict(out_indices=(1, 2)), '^out_indices goes to 2, but .* are 2 stages: choose up to 1'),
        (dict(frozen_stages=2), '^frozen_stages goes to 2'),
        (dict(token_reduction=dict(type='ToMe')), "^token_reduction.type='ToMe' cannot work in a backbone of stages"),
        (dict(token_reduction=dict(type='GridPool', stage=3)), '^token_reduction.stage=3 must be a whole number'),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_when_the_model_is_built(given, said):
    with pytest.raises(UserError, match=said):
        Own(**{**SMALL, **given})


def test_a_map_smaller_than_its_window_is_refused_as_by_stock():
    with pytest.raises(AssertionError, match='smaller than the window'):
        built(Stock)(images(24, 64))
    with pytest.raises(UserError, match='^A stage has 3x8 tokens for this image, fewer than window_size=4: .*pad'):
        built(Own)(images(24, 64))


def test_no_hostile_value_is_taken():
    for setting, may_be in declarations(Own).items():
        for value in HOSTILE:
            if not fits(may_be, value, None):
                with pytest.raises(UserError, match=f'^{setting}=.* must be '):
                    Own(**{**SMALL, setting: value})


def test_fresh_weights_are_those_of_stock_and_outputs_within_rounding():
    outs = []
    for kind in (Stock, Own):
        torch.manual_seed(0)
        model = kind(arch=dict(ARCH, embed_dims=96, num_heads=(3, 6)), img_size=64, window_size=8, out_indices=(0, 1))
        model.init_weights()
        model.eval()
        with torch.no_grad():
            outs.append(model(images(64, 96)))
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-5)
