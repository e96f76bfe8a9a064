"""ViTDet as detectron2 and SAM release it: random weights, and a forward pass written from the formulas."""

import torch
from official_layouts import CLASSES, PATCH, draw, gelu, layer_norm, linear, linear_shapes, norm_shapes
from torch.nn import functional as F

DIM, HEADS, LAYERS, HIDDEN, WINDOW, SIDE = 64, 2, 3, 128, 3, 8
SIZE = (SIDE * PATCH, SIDE * PATCH)
WHOLE = (1,)


def block_shapes(name, rows, fc=('mlp.fc1', 'mlp.fc2')):
    return {
        **norm_shapes(f'{name}.norm1', DIM),
        **linear_shapes(f'{name}.attn.qkv', DIM, 3 * DIM),
        **{f'{name}.attn.rel_pos_{axis}': (2 * rows - 1, DIM // HEADS) for axis in 'hw'},
        **linear_shapes(f'{name}.attn.proj', DIM, DIM),
        **norm_shapes(f'{name}.norm2', DIM),
        **linear_shapes(f'{name}.{fc[0]}', DIM, HIDDEN),
        **linear_shapes(f'{name}.{fc[1]}', HIDDEN, DIM),
    }


def encoder_shapes(positions, fc=('mlp.fc1', 'mlp.fc2')):
    shapes = {
        'pos_embed': positions,
        'patch_embed.proj.weight': (DIM, 3, PATCH, PATCH),
        'patch_embed.proj.bias': (DIM,),
    }
    for i in range(LAYERS):
        shapes.update(block_shapes(f'blocks.{i}', SIDE if i in WHOLE else WINDOW, fc))
    return shapes


def vitdet_state():
    """Its position table is of a pretraining on 4x4 patches, with a class token."""
    shapes = {f'backbone.net.{key}': shape for key, shape in encoder_shapes((1, 17, DIM)).items()}
    heads = {'backbone.simfp_3.0.weight': (8, DIM, 1, 1), **linear_shapes('roi_heads.box_predictor', 8, CLASSES)}
    return _large(draw({**shapes, **heads}))


def sam_state():
    fc = ('mlp.lin1', 'mlp.lin2')
    shapes = {f'image_encoder.{key}': shape for key, shape in encoder_shapes((1, SIDE, SIDE, DIM), fc).items()}
    others = {'image_encoder.neck.0.weight': (8, DIM, 1, 1), 'mask_decoder.iou_token.weight': (1, 8)}
    return _large(draw({**shapes, **others, 'prompt_encoder.no_mask_embed.weight': (1, 8)}))


def _large(state):
    """With relative positions, and biases of the keys that fill windows up, that show."""
    return {key: 8 * value if 'rel_pos' in key or 'qkv.bias' in key else value for key, value in state.items()}


def relative(table, n):
    """Rows of a table (2 n - 1, D) for each pair of query and key: (n, n, D)."""
    return torch.stack([torch.stack([table[a - b + n - 1] for b in range(n)]) for a in range(n)])


def attention(x, state, name):
    """Of maps (B, H, W, C)."""
    n = len(x[0])
    q, k, v = (t.unflatten(-1, (HEADS, -1)) for t in linear(x, state, f'{name}.qkv').chunk(3, -1))
    logits = torch.einsum('bijhd,bklhd->bhijkl', q, k) / (DIM // HEADS) ** 0.5
    logits = logits + torch.einsum('bijhd,ikd->bhijk', q, relative(state[f'{name}.rel_pos_h'], n)).unsqueeze(-1)
    logits = logits + torch.einsum('bijhd,jld->bhijl', q, relative(state[f'{name}.rel_pos_w'], n)).unsqueeze(-2)
    weights = logits.flatten(4).softmax(-1).view_as(logits)
    return linear(torch.einsum('bhijkl,bklhd->bijhd', weights, v).flatten(3), state, f'{name}.proj')


def windowed(x, state, name):
    pad = -SIDE % WINDOW
    across = (SIDE + pad) // WINDOW
    x = F.pad(x, (0, 0, 0, pad, 0, pad)).view(-1, across, WINDOW, across, WINDOW, DIM)
    out = attention(x.transpose(2, 3).flatten(0, 2), state, name)
    return (
        out.view(-1, across, across, WINDOW, WINDOW, DIM)
        .transpose(2, 3)
        .reshape(-1, SIDE + pad, SIDE + pad, DIM)[:, :SIDE, :SIDE]
    )


def encoder(image, state, prefix):
    """Maps (B, C, H, W) before a neck or pyramid."""
    state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    x = F.conv2d(image, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], PATCH).permute(0, 2, 3, 1)
    positions = state['pos_embed']
    if positions.dim() == 3:
        table = positions[:, 1:].view(1, 4, 4, DIM).permute(0, 3, 1, 2)
        positions = F.interpolate(table, (SIDE, SIDE), mode='bicubic', align_corners=False).permute(0, 2, 3, 1)
    x = x + positions
    for i in range(LAYERS):
        name = f'blocks.{i}'
        fc = [f'{name}.mlp.{part}' for part in ('fc1', 'fc2')]
        if f'{fc[0]}.weight' not in state:
            fc = [f'{name}.mlp.{part}' for part in ('lin1', 'lin2')]
        attend = attention if i in WHOLE else windowed
        x = x + attend(layer_norm(x, state, f'{name}.norm1', 1e-6), state, f'{name}.attn')
        x = x + linear(gelu(linear(layer_norm(x, state, f'{name}.norm2', 1e-6), state, fc[0])), state, fc[1])
    return x.permute(0, 3, 1, 2)
