"""timm's two layouts of EVA-02: random weights, and a forward pass written from the formulas."""

import torch
from official_layouts import (
    CLASSES,
    DIM,
    LAYERS,
    PATCH,
    PATCHES,
    SIZE,
    draw,
    embed,
    embedding_shapes,
    layer_norm,
    linear,
    linear_shapes,
    norm_shapes,
)

HEADS = 2
GRID = (SIZE[0] // PATCH, SIZE[1] // PATCH)
HIDDEN = 341  # int(128 * 8 / 3)


def eva02_shapes(separate, norm='fc_norm', clip=False, layers=LAYERS):
    """``separate``: B and L, one projection for each of q, k, v, gate and value; else Ti and S."""
    shapes = embedding_shapes(norm, DIM)
    for i in range(layers):
        at = f'blocks.{i}'
        shapes.update(
            {
                **norm_shapes(f'{at}.norm1', DIM),
                **linear_shapes(f'{at}.attn.proj', DIM, DIM),
                **norm_shapes(f'{at}.norm2', DIM),
                **linear_shapes(f'{at}.mlp.fc2', HIDDEN, DIM),
            }
        )
        if separate:
            shapes.update(
                {
                    **linear_shapes(f'{at}.attn.q_proj', DIM, DIM),
                    f'{at}.attn.k_proj.weight': (DIM, DIM),
                    **linear_shapes(f'{at}.attn.v_proj', DIM, DIM),
                    **linear_shapes(f'{at}.mlp.fc1_g', DIM, HIDDEN),
                    **linear_shapes(f'{at}.mlp.fc1_x', DIM, HIDDEN),
                    **norm_shapes(f'{at}.mlp.norm', HIDDEN),
                }
            )
        else:
            shapes.update(
                {
                    f'{at}.attn.qkv.weight': (3 * DIM, DIM),
                    f'{at}.attn.q_bias': (DIM,),
                    f'{at}.attn.v_bias': (DIM,),
                    **linear_shapes(f'{at}.mlp.fc1', DIM, 2 * HIDDEN),
                }
            )
        if clip:
            shapes.update(norm_shapes(f'{at}.attn.norm', DIM))
    return shapes


def eva02_state(separate, **kwargs):
    return draw({**eva02_shapes(separate, **kwargs), **linear_shapes('head', DIM, CLASSES)})


def turn(x, grid, index):
    """The rotary embedding of one head (B, 1 + N, D): pairs of channels are complex numbers, turned by 16 rows."""
    pairs = torch.view_as_complex(x[:, 1:].unflatten(-1, (-1, 2)).double().contiguous()).clone()
    quarter = x.shape[-1] // 4
    for n, (row, column) in enumerate(divmod(position, grid[1]) for position in index):
        for i in range(quarter):
            band = 10000.0 ** (-i / quarter)
            pairs[:, n, i] *= torch.exp(torch.tensor(1j * row / grid[0] * 16 * band))
            pairs[:, n, quarter + i] *= torch.exp(torch.tensor(1j * column / grid[1] * 16 * band))
    return torch.cat((x[:, :1], torch.view_as_real(pairs).flatten(2).to(x.dtype)), 1)


def eva02_block(x, state, name, grid, index):
    y = layer_norm(x, state, f'{name}.norm1', 1e-6)
    if f'{name}.attn.qkv.weight' in state:
        query, key, value = (y @ state[f'{name}.attn.qkv.weight'].T).chunk(3, -1)
        query, value = query + state[f'{name}.attn.q_bias'], value + state[f'{name}.attn.v_bias']
    else:
        query, value = (linear(y, state, f'{name}.attn.{part}_proj') for part in 'qv')
        key = y @ state[f'{name}.attn.k_proj.weight'].T
    out = []
    for q, k, v in zip(*(t.chunk(HEADS, -1) for t in (query, key, value))):
        weights = turn(q, grid, index) @ turn(k, grid, index).transpose(1, 2) / q.shape[-1] ** 0.5
        out.append(weights.softmax(-1) @ v)
    y = torch.cat(out, -1)
    if f'{name}.attn.norm.weight' in state:
        y = layer_norm(y, state, f'{name}.attn.norm', 1e-6)
    x = x + linear(y, state, f'{name}.attn.proj')
    y = layer_norm(x, state, f'{name}.norm2', 1e-6)
    if f'{name}.mlp.fc1.weight' in state:
        gate, value = linear(y, state, f'{name}.mlp.fc1').chunk(2, -1)
    else:
        gate, value = (linear(y, state, f'{name}.mlp.fc1_{part}') for part in 'gx')
    y = gate * gate.sigmoid() * value
    if f'{name}.mlp.norm.weight' in state:
        y = layer_norm(y, state, f'{name}.mlp.norm', 1e-6)
    return x + linear(y, state, f'{name}.mlp.fc2')


def eva02(image, state):
    """Normalised patch tokens, (B, N, C)."""
    x = embed(image, state)
    for i in range(LAYERS):
        x = eva02_block(x, state, f'blocks.{i}', GRID, range(PATCHES))
    return layer_norm(x, state, 'fc_norm' if 'fc_norm.weight' in state else 'norm', 1e-6)[:, 1:]


def cropr(image, state, layers, r):
    """Normalised patch tokens (1, N, C) of one image; r[i] of them leave after layer i, and return before the last."""
    x, index, left, left_index = embed(image, state), list(range(PATCHES)), [], []
    for i in range(layers - 1):
        x = eva02_block(x, state, f'blocks.{i}', GRID, index)
        if i < len(r):
            scores = (x[0, 1:] @ state[f'cropr.{i}.cross_attn.queries'][0].T).sum(1)
            order = scores.argsort(descending=True).tolist()
            kept, pruned = order[: len(order) - r[i]], order[len(order) - r[i] :]
            left += [x[:, 1 + n] for n in pruned]
            left_index += [index[n] for n in pruned]
            x, index = x[:, [0] + [1 + n for n in kept]], [index[n] for n in kept]
    x, index = torch.cat((x, *(t.unsqueeze(1) for t in left)), 1), index + left_index
    x = layer_norm(eva02_block(x, state, f'blocks.{layers - 1}', GRID, index), state, 'fc_norm', 1e-6)[:, 1:]
    return x[:, [index.index(n) for n in range(PATCHES)]]
