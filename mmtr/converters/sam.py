"""Convert the image encoder of SAM (Segment Anything), without its neck, to ``mmtr.ViTDet``."""

import torch
from torch import Tensor

from mmtr.errors import UserError

from .vit import Notes, need
from .vitdet import backbone_of, read

__all__ = ['convert', 'read']
KIND = "SAM's image encoder"
PREFIX = 'image_encoder.'
NECK = f'{PREFIX}neck.'
NAMES = ('norm1.', 'attn.qkv.', 'attn.proj.', 'norm2.', 'mlp.lin1.', 'mlp.lin2.')


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Notes]:
    """Convert the release's keys to the backbone's, without prefix; drop neck, prompt encoder and mask decoder.

    Raises:
        UserError: The weights are not those of SAM's image encoder.
    """
    positions = need(state, f'{PREFIX}pos_embed', KIND)
    if positions.dim() != 4 or positions.shape[1] != positions.shape[2]:
        raise UserError(f'The position table of the file has shape {tuple(positions.shape)}; {KIND} has a square one.')
    # The entry of a class token, which SAM has not, and ViTDet does not use.
    positions = torch.cat([positions.new_zeros(1, 1, positions.shape[3]), positions.flatten(1, 2)], 1)
    kept = {key: value for key, value in state.items() if not key.startswith(NECK)}
    left = 'The neck of the image encoder, the prompt encoder and the mask decoder'
    return backbone_of({**kept, f'{PREFIX}pos_embed': positions}, 'sam', KIND, PREFIX, left, NAMES)
