"""DINOv3 as released: weights under its keys, its forward pass written out, and the keys of the two other layouts."""

import math
import re

import torch
import torch.nn.functional as F

DIM, HEADS, LAYERS, PATCH, HIDDEN = 128, 2, 3, 8, 160


def release_state(gated=False, registers=4):
    """Drawn weights; LayerScale and norms are far from their start, and the bias of keys, which is masked, is not 0."""
    shapes = {'cls_token': (1, 1, DIM), 'mask_token': (1, DIM), 'rope_embed.periods': (DIM // HEADS // 4,)}
    if registers:
        shapes['storage_tokens'] = (1, registers, DIM)
    linear = {'patch_embed.proj': (DIM, 3, PATCH, PATCH)}
    norms = ['norm']
    for i in range(LAYERS):
        at = f'blocks.{i}.'
        linear |= {f'{at}attn.qkv': (3 * DIM, DIM), f'{at}attn.proj': (DIM, DIM)}
        if gated:
            linear |= {f'{at}mlp.w{n}': (HIDDEN, DIM) for n in (1, 2)} | {f'{at}mlp.w3': (DIM, HIDDEN)}
        else:
            linear |= {f'{at}mlp.fc1': (HIDDEN, DIM), f'{at}mlp.fc2': (DIM, HIDDEN)}
        norms += [f'{at}norm1', f'{at}norm2']
        shapes |= {f'{at}ls{n}.gamma': (DIM,) for n in (1, 2)} | {f'{at}attn.qkv.bias_mask': (3 * DIM,)}
    for name, shape in linear.items():
        shapes |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
    for name in norms:
        shapes |= {f'{name}.weight': (DIM,), f'{name}.bias': (DIM,)}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.15 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        state[name] += 0.3 * name.endswith('gamma') + 1.0 * ('norm' in name and name.endswith('weight'))
    mask = torch.ones(3, DIM)
    mask[1] = 0
    return {name: mask.flatten() if name.endswith('bias_mask') else value for name, value in state.items()}


def forward(state, x, factor=1.0):
    """All tokens after the final norm, (B, 1 + registers + H * W, C)."""

    def linear(x, name):
        return F.linear(x, state[f'{name}.weight'], state[f'{name}.bias'])

    def norm(x, name):
        return F.layer_norm(x, (DIM,), state[f'{name}.weight'], state[f'{name}.bias'], 1e-5)

    x = F.conv2d(x, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], stride=PATCH)
    rows, columns = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    prefix = [state[name].expand(len(x), -1, -1) for name in ('cls_token', 'storage_tokens') if name in state]
    first = sum(each.shape[1] for each in prefix)
    x = torch.cat([*prefix, x], 1)
    angles = torch.empty(rows * columns, DIM // HEADS // 2)
    for i in range(rows):
        for j in range(columns):
            for k in range(DIM // HEADS // 4):
                period = 100 ** (k / (DIM // HEADS // 4))
                places = (2 * (i + 0.5) / rows - 1, 2 * (j + 0.5) / columns - 1)
                for axis, place in enumerate(places):
                    angles[i * columns + j, axis * DIM // HEADS // 4 + k] = 2 * math.pi * factor * place / period

    def turned(t):
        a, b = t[..., first:, :].chunk(2, -1)
        both = [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()]
        return torch.cat([t[..., :first, :], torch.cat(both, -1)], -2)

    for i in range(LAYERS):
        at = f'blocks.{i}.'
        bias = state[f'{at}attn.qkv.bias'] * state[f'{at}attn.qkv.bias_mask']
        qkv = F.linear(norm(x, f'{at}norm1'), state[f'{at}attn.qkv.weight'], bias)
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (turned(q) @ turned(k).transpose(-1, -2) / (DIM // HEADS) ** 0.5).softmax(-1)
        x = x + state[f'{at}ls1.gamma'] * linear((weights @ v).transpose(1, 2).flatten(2), f'{at}attn.proj')
        y = norm(x, f'{at}norm2')
        if f'{at}mlp.w1.weight' in state:
            y = linear(F.silu(linear(y, f'{at}mlp.w1')) * linear(y, f'{at}mlp.w2'), f'{at}mlp.w3')
        else:
            y = linear(F.gelu(linear(y, f'{at}mlp.fc1')), f'{at}mlp.fc2')
        x = x + state[f'{at}ls2.gamma'] * y
    return norm(x, 'norm')


def _renamed(state, rules):
    found = {}
    for name, value in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = value
    return found


def huggingface_state(state, within='layer'):
    """The same weights as Hugging Face names them, with three projections and without the bias of keys."""
    state = {name: value for name, value in state.items() if not name.endswith(('periods', 'bias_mask'))}
    gated = 'blocks.0.mlp.w1.weight' in state
    for i in range(LAYERS):
        for part in ('weight', 'bias'):
            for name, value in zip('qkv', state.pop(f'blocks.{i}.attn.qkv.{part}').chunk(3)):
                if (name, part) != ('k', 'bias'):
                    state[f'blocks.{i}.attention.{name}_proj.{part}'] = value
    ffn = [('mlp.w1', 'mlp.gate_proj'), ('mlp.w2', 'mlp.up_proj'), ('mlp.w3', 'mlp.down_proj')]
    return _renamed(
        state,
        [
            (r'^blocks', within),
            ('^cls_token', 'embeddings.cls_token'),
            ('^storage_tokens', 'embeddings.register_tokens'),
            ('^mask_token', 'embeddings.mask_token'),
            (r'^patch_embed\.proj', 'embeddings.patch_embeddings'),
            (r'attn\.proj', 'attention.o_proj'),
            (r'ls(\d)\.gamma', r'layer_scale\1.lambda1'),
            *(ffn if gated else [(r'mlp\.fc1', 'mlp.up_proj'), (r'mlp\.fc2', 'mlp.down_proj')]),
        ],
    )


def timm_state(state, biases=True):
    """The same weights as timm names them, with or without the biases of queries and values."""
    state = {name: value for name, value in state.items() if not name.endswith(('periods', 'bias_mask', 'mask_token'))}
    for i in range(LAYERS):
        q, _, v = state.pop(f'blocks.{i}.attn.qkv.bias').chunk(3)
        if biases:
            state |= {f'blocks.{i}.attn.q_bias': q, f'blocks.{i}.attn.v_bias': v}
    return _renamed(
        state,
        [
            ('^storage_tokens', 'reg_token'),
            (r'ls(\d)\.gamma', r'gamma_\1'),
            (r'mlp\.w1', 'mlp.fc1_g'),
            (r'mlp\.w2', 'mlp.fc1_x'),
            (r'mlp\.w3', 'mlp.fc2'),
        ],
    )
