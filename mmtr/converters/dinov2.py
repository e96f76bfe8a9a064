"""Convert the official DINOv2, with or without registers, to ``mmtr.DINOv2``, to start training from."""

from torch import Tensor

from .timm_vit import read
from .vit import SIZES, Notes, depth, grid_side, heads_of_64, need, rename, vit_table

__all__ = ['convert', 'read']
KIND = 'an official DINOv2'
DROPPED = ('mask_token',)


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Notes]:
    """Convert the release's keys to the backbone's, without prefix; drop the mask token.

    Raises:
        UserError: The weights are not those of an official DINOv2.
    """
    converted = rename(state, _table(state), KIND, DROPPED)
    settings = _settings(converted)
    letter = SIZES.get((settings['backbone.embed_dims'], settings['backbone.num_layers']), (None,))[0]
    side = settings['backbone.img_size'][0] // settings['backbone.patch_size']
    notes = Notes(dict(source='dinov2', settings=settings), settings, letter and f'dinov2-{letter}_full_*.py')
    notes.remarks = [
        f'The position table stays at its {side}x{side} patches; the backbone resizes it to its img_size.',
        "The images are normalised with ImageNet's mean and std.",
    ]
    if 'mask_token' in state:
        notes.remarks.insert(0, 'The mask token, which only pretraining uses, was left behind.')
    return converted, notes


def _table(state):
    table = vit_table(state, KIND)
    dim = len(need(state, 'patch_embed.proj.weight', KIND))
    registers = state.get('register_tokens')
    if registers is not None:
        table['register_tokens'] = ('register_tokens', (1, registers.numel() // dim, dim))
    for i in range(depth(state, r'blocks\.(\d+)\.')):
        table[f'blocks.{i}.ls1.gamma'] = (f'layers.{i}.attn.gamma1.weight', (dim,))
        table[f'blocks.{i}.ls2.gamma'] = (f'layers.{i}.ffn.gamma2.weight', (dim,))
    return table


def _settings(state):
    dim, channels, patch, _ = state['patch_embed.projection.weight'].shape
    registers, gated = state.get('register_tokens'), 'layers.0.ffn.fc1.weight' in state
    return {
        'backbone.img_size': (grid_side(state['pos_embed']) * patch,) * 2,
        'backbone.patch_size': patch,
        'backbone.in_channels': channels,
        'backbone.embed_dims': dim,
        'backbone.num_layers': depth(state, r'layers\.(\d+)\.'),
        'backbone.num_heads': heads_of_64(dim, KIND),
        'backbone.mlp_ratio': 4 if gated else len(state['layers.0.ffn.layers.0.0.weight']) // dim,
        'backbone.num_registers': 0 if registers is None else registers.shape[1],
        **({'backbone.ffn': 'swiglu'} if gated else {}),
    }
