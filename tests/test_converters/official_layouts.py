"""The layouts that the sources release: random weights, and forward passes written from the formulas."""

import torch
from torch.nn import functional as F

DIM, HEADS, LAYERS, HIDDEN, PATCH, CLASSES = 128, 4, 2, 256, 8, 5
SIZE = (32, 32)
PATCHES = 16


def draw(shapes, seed=0):
    """Small random weights, so that the eps of a LayerNorm shows; its scale is near 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: 0.05 * torch.randn(shape, generator=generator) + (1.0 if 'norm' in key and 'weight' in key else 0.0)
        for key, shape in shapes.items()
    }


def linear_shapes(name, n_in, n_out):
    return {f'{name}.weight': (n_out, n_in), f'{name}.bias': (n_out,)}


def norm_shapes(name, dim):
    return {f'{name}.weight': (dim,), f'{name}.bias': (dim,)}


def embedding_shapes(norm='norm', dim=DIM):
    """What is before a timm ViT's blocks, and the norm after them."""
    return {
        'cls_token': (1, 1, dim),
        'pos_embed': (1, 1 + PATCHES, dim),
        'patch_embed.proj.weight': (dim, 3, PATCH, PATCH),
        'patch_embed.proj.bias': (dim,),
        **norm_shapes(norm, dim),
    }


def block_shapes(name, dim=DIM, hidden=HIDDEN):
    return {
        **norm_shapes(f'{name}.norm1', dim),
        **linear_shapes(f'{name}.attn.qkv', dim, 3 * dim),
        **linear_shapes(f'{name}.attn.proj', dim, dim),
        **norm_shapes(f'{name}.norm2', dim),
        **linear_shapes(f'{name}.mlp.fc1', dim, hidden),
        **linear_shapes(f'{name}.mlp.fc2', hidden, dim),
    }


def vit_shapes(prefix=''):
    shapes = {**embedding_shapes(), **linear_shapes('head', DIM, 10)}
    for i in range(LAYERS):
        shapes.update(block_shapes(f'blocks.{i}'))
    return {prefix + key: shape for key, shape in shapes.items()}


def linear(x, state, name):
    return x @ state[f'{name}.weight'].T + state[f'{name}.bias']


def norm(x, scale, shift, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * scale + shift


def layer_norm(x, state, name, eps):
    return norm(x, state[f'{name}.weight'], state[f'{name}.bias'], eps)


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def block(x, state, name, heads, eps):
    y = layer_norm(x, state, f'{name}.norm1', eps)
    query, key, value = linear(y, state, f'{name}.attn.qkv').chunk(3, -1)
    out = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1)):
        out.append((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)
    x = x + linear(torch.cat(out, -1), state, f'{name}.attn.proj')
    y = gelu(linear(layer_norm(x, state, f'{name}.norm2', eps), state, f'{name}.mlp.fc1'))
    return x + linear(y, state, f'{name}.mlp.fc2')


def unfold(image):
    """Patches in raster order, (B, N, 3 * PATCH * PATCH)."""
    return F.unfold(image, PATCH, stride=PATCH).transpose(1, 2)


def embed(image, state):
    """Class and patch tokens before the blocks of a timm ViT, (B, 1 + N, C)."""
    x = unfold(image) @ state['patch_embed.proj.weight'].flatten(1).T + state['patch_embed.proj.bias']
    return torch.cat((state['cls_token'].expand(len(x), -1, -1), x), 1) + state['pos_embed']


def vit(image, state, eps, prefix=''):
    """Normalised patch tokens of a timm ViT, (B, N, C)."""
    state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    x = embed(image, state)
    for i in range(LAYERS):
        x = block(x, state, f'blocks.{i}', HEADS, eps)
    return layer_norm(x, state, 'norm', eps)[:, 1:]


def maps(tokens):
    """(B, N, C) -> (B, C, H, W)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, SIZE[0] // PATCH, SIZE[1] // PATCH)


def variant(**net):
    return dict(
        dataset_kwargs=dict(dataset='ade20k'),
        inference_kwargs=dict(im_size=32, window_size=32, window_stride=24),
        net_kwargs=dict(
            image_size=SIZE,
            patch_size=PATCH,
            d_model=DIM,
            n_heads=HEADS,
            n_layers=LAYERS,
            n_cls=CLASSES,
            normalization='vit',
            **net,
        ),
    )


def mask_state():
    shapes = {
        **vit_shapes('encoder.'),
        'decoder.cls_emb': (1, CLASSES, DIM),
        'decoder.proj_patch': (DIM, DIM),
        'decoder.proj_classes': (DIM, DIM),
        **linear_shapes('decoder.proj_dec', DIM, DIM),
        **norm_shapes('decoder.decoder_norm', DIM),
        **norm_shapes('decoder.mask_norm', CLASSES),
    }
    for i in range(2):
        shapes.update(block_shapes(f'decoder.blocks.{i}'))
    return draw(shapes)


def linear_state():
    return draw({**vit_shapes('encoder.'), **linear_shapes('decoder.head', DIM, CLASSES)})


def augreg_state():
    d = DIM // HEADS
    shapes = {
        'cls': (1, 1, DIM),
        'embedding/kernel': (PATCH, PATCH, 3, DIM),
        'embedding/bias': (DIM,),
        'Transformer/posembed_input/pos_embedding': (1, 1 + PATCHES, DIM),
        'Transformer/encoder_norm/scale': (DIM,),
        'Transformer/encoder_norm/bias': (DIM,),
        'head/kernel': (DIM, 10),
        'head/bias': (10,),
        'pre_logits/kernel': (DIM, DIM),
        'pre_logits/bias': (DIM,),
    }
    for i in range(LAYERS):
        at = f'Transformer/encoderblock_{i}'
        for name in ('LayerNorm_0', 'LayerNorm_2'):
            shapes.update({f'{at}/{name}/scale': (DIM,), f'{at}/{name}/bias': (DIM,)})
        attention = f'{at}/MultiHeadDotProductAttention_1'
        for name in ('query', 'key', 'value'):
            shapes.update({f'{attention}/{name}/kernel': (DIM, HEADS, d), f'{attention}/{name}/bias': (HEADS, d)})
        shapes.update({f'{attention}/out/kernel': (HEADS, d, DIM), f'{attention}/out/bias': (DIM,)})
        for name, n_in, n_out in (('Dense_0', DIM, HIDDEN), ('Dense_1', HIDDEN, DIM)):
            shapes.update({f'{at}/MlpBlock_3/{name}/kernel': (n_in, n_out), f'{at}/MlpBlock_3/{name}/bias': (n_out,)})
    state = draw(shapes)
    return {key: value + 1 if key.endswith('/scale') else value for key, value in state.items()}


def augreg_vit(image, state):
    patches = image.reshape(len(image), 3, SIZE[0] // PATCH, PATCH, SIZE[1] // PATCH, PATCH)
    x = torch.einsum('bchpwq,pqcd->bhwd', patches, state['embedding/kernel']).flatten(1, 2) + state['embedding/bias']
    x = torch.cat((state['cls'].expand(len(x), 1, DIM), x), 1) + state['Transformer/posembed_input/pos_embedding']
    for i in range(LAYERS):
        at = f'Transformer/encoderblock_{i}'
        attention = f'{at}/MultiHeadDotProductAttention_1'
        y = norm(x, state[f'{at}/LayerNorm_0/scale'], state[f'{at}/LayerNorm_0/bias'], 1e-6)
        query, key, value = (
            torch.einsum('bnc,chd->bnhd', y, state[f'{attention}/{name}/kernel']) + state[f'{attention}/{name}/bias']
            for name in ('query', 'key', 'value')
        )
        weights = (torch.einsum('bqhd,bkhd->bhqk', query, key) / (DIM // HEADS) ** 0.5).softmax(-1)
        y = torch.einsum('bhqk,bkhd->bqhd', weights, value)
        x = x + torch.einsum('bqhd,hdc->bqc', y, state[f'{attention}/out/kernel']) + state[f'{attention}/out/bias']
        y = norm(x, state[f'{at}/LayerNorm_2/scale'], state[f'{at}/LayerNorm_2/bias'], 1e-6)
        mlp = f'{at}/MlpBlock_3'
        y = gelu(y @ state[f'{mlp}/Dense_0/kernel'] + state[f'{mlp}/Dense_0/bias'])
        x = x + y @ state[f'{mlp}/Dense_1/kernel'] + state[f'{mlp}/Dense_1/bias']
    return norm(x, state['Transformer/encoder_norm/scale'], state['Transformer/encoder_norm/bias'], 1e-6)[:, 1:]
