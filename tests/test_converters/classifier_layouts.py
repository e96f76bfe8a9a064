"""Classifiers as they are released: random weights, and forward passes written from the official code."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.test_converters.official_layouts import (
    CLASSES,
    DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    PATCH,
    PATCHES,
    SIZE,
    block,
    block_shapes,
    draw,
    embed,
    embedding_shapes,
    gelu,
    layer_norm,
    linear,
    linear_shapes,
    norm_shapes,
)

SWAG = ('layer_', 'mlp.linear_1', 'mlp.linear_2', 'head.layers')
TORCHVISION = ('encoder_layer_', 'mlp.0', 'mlp.3', 'heads')
FORMER_TORCHVISION = ('encoder_layer_', 'mlp.linear_1', 'mlp.linear_2', 'heads')


def encoder_state(names=SWAG, dim=DIM, layers=LAYERS, hidden=HIDDEN, head=True, pre_logits=None):
    """The state dict of SWAG or torchvision."""
    layer, fc1, fc2, classifier = names
    shapes = {
        'class_token': (1, 1, dim),
        'conv_proj.weight': (dim, 3, PATCH, PATCH),
        'conv_proj.bias': (dim,),
        'encoder.pos_embedding': (1 + PATCHES, 1, dim) if names == SWAG else (1, 1 + PATCHES, dim),
        **norm_shapes('encoder.ln', dim),
    }
    for i in range(layers):
        at = f'encoder.layers.{layer}{i}'
        shapes.update(
            {
                **norm_shapes(f'{at}.ln_1', dim),
                f'{at}.self_attention.in_proj_weight': (3 * dim, dim),
                f'{at}.self_attention.in_proj_bias': (3 * dim,),
                **linear_shapes(f'{at}.self_attention.out_proj', dim, dim),
                **norm_shapes(f'{at}.ln_2', dim),
                **linear_shapes(f'{at}.{fc1}', dim, hidden),
                **linear_shapes(f'{at}.{fc2}', hidden, dim),
            }
        )
    if head:
        if pre_logits:
            shapes.update(linear_shapes(f'{classifier}.pre_logits', dim, pre_logits))
        shapes.update(linear_shapes(f'{classifier}.head', pre_logits or dim, CLASSES))
    scales = [key for key in shapes if key.rpartition('.')[0].endswith(('.ln', '.ln_1', '.ln_2'))]
    return {key: value + (key in scales and key.endswith('weight')) for key, value in draw(shapes).items()}


def encoder_logits(image, state, names=SWAG):
    """Logits of SWAG's or torchvision's model of this state dict; its sequence comes before the batch."""
    layer, fc1, fc2, classifier = names
    x = F.conv2d(image, state['conv_proj.weight'], state['conv_proj.bias'], stride=PATCH).flatten(2).permute(2, 0, 1)
    x = torch.cat((state['class_token'].expand(-1, len(image), -1), x))
    x = x + state['encoder.pos_embedding'].reshape(len(x), 1, -1)
    for i in range(LAYERS):
        at = f'encoder.layers.{layer}{i}'
        attention, own = nn.MultiheadAttention(DIM, HEADS), f'{at}.self_attention.'
        attention.load_state_dict({key[len(own) :]: value for key, value in state.items() if key.startswith(own)})
        y = layer_norm(x, state, f'{at}.ln_1', 1e-6)
        x = x + attention(y, y, y, need_weights=False)[0]
        y = gelu(linear(layer_norm(x, state, f'{at}.ln_2', 1e-6), state, f'{at}.{fc1}'))
        x = x + linear(y, state, f'{at}.{fc2}')
    x = layer_norm(x[0], state, 'encoder.ln', 1e-6)
    if f'{classifier}.pre_logits.weight' in state:
        x = linear(x, state, f'{classifier}.pre_logits').tanh()
    return linear(x, state, f'{classifier}.head')


def timm_state(norm='fc_norm', head=True, decoder=False, modules=0, dim=DIM, layers=LAYERS, hidden=HIDDEN):
    """The state dict of MAE, or of Cropr's release with ``modules``."""
    shapes = embedding_shapes(norm, dim)
    for i in range(layers):
        shapes.update(block_shapes(f'blocks.{i}', dim, hidden))
    for i in range(modules):
        at = f'cropr.{i}'
        shapes.update(
            {
                f'{at}.cross_attn.queries': (1, 1, dim),
                **norm_shapes(f'{at}.cross_attn.mlp_norm', dim),
                **linear_shapes(f'{at}.cross_attn.mlp.fc1', dim, 4 * dim),
                **linear_shapes(f'{at}.cross_attn.mlp.fc2', 4 * dim, dim),
                **norm_shapes(f'{at}.head.norm', dim),
                **linear_shapes(f'{at}.head.head', dim, CLASSES),
            }
        )
    if head:
        shapes.update(linear_shapes('head', dim, CLASSES))
    if decoder:
        shapes.update(
            {
                'mask_token': (1, 1, 32),
                'decoder_pos_embed': (1, 1 + PATCHES, 32),
                **linear_shapes('decoder_embed', dim, 32),
                **norm_shapes('decoder_blocks.0.norm1', 32),
                **norm_shapes('decoder_norm', 32),
                **linear_shapes('decoder_pred', 32, 3 * PATCH**2),
            }
        )
    return draw(shapes)


def mae_logits(image, state):
    """Logits of MAE's fine-tuned model: by the mean of the patches, or by the class token if it has the last norm."""
    x = embed(image, state)
    for i in range(LAYERS):
        x = block(x, state, f'blocks.{i}', HEADS, 1e-6)
    if 'fc_norm.weight' in state:
        return linear(layer_norm(x[:, 1:].mean(1), state, 'fc_norm', 1e-6), state, 'head')
    return linear(layer_norm(x, state, 'norm', 1e-6)[:, 0], state, 'head')


def cropr_logits(image, state, layers, r=()):
    """Logits of Cropr's model for one image, and those of its modules; r[i] patches leave after layer i.

    They come back before the last layer, unless they left just before it: then the model was built without that.
    """
    x, left, auxiliary = embed(image, state), [], []
    for i in range(layers):
        if i == layers - 1 and len(r) == layers - 2:
            x = torch.cat((x, *left), 1)
        x = block(x, state, f'blocks.{i}', HEADS, 1e-6)
        if i < len(r):
            at = f'cropr.{i}'
            logits = state[f'{at}.cross_attn.queries'] @ x.transpose(1, 2)
            seen = (logits / DIM**0.5).softmax(-1) @ x
            y = layer_norm(seen, state, f'{at}.cross_attn.mlp_norm', 1e-6)
            y = linear(gelu(linear(y, state, f'{at}.cross_attn.mlp.fc1')), state, f'{at}.cross_attn.mlp.fc2')
            y = layer_norm(seen + y, state, f'{at}.head.norm', 1e-5)
            auxiliary.append(linear(y, state, f'{at}.head.head')[:, 0])
            order = logits[0, 0, 1:].argsort(descending=True).tolist()
            gone = order[len(order) - r[i] :]
            left += [x[:, [1 + n]] for n in gone]
            x = x[:, [0] + [1 + n for n in order[: len(order) - r[i]]]]
    if 'fc_norm.weight' in state:
        x = layer_norm(x.mean(1), state, 'fc_norm', 1e-6)
    else:
        x = layer_norm(x, state, 'norm', 1e-6)[:, 0]
    return linear(x, state, 'head'), auxiliary


def image():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
