"""Convert torchvision's ViTs to mmpretrain's ``ImageClassifier``."""

from typing import Optional

from torch import Tensor

from . import swag
from .classifier import classifier_notes
from .swag import classes_table, encoder_table, position_remark
from .timm_vit import read
from .vit import Notes, need, rename

__all__ = ['convert', 'read']
KIND = "torchvision's ViT"
BLOCK = (*swag.BLOCK[:4], 'mlp.0.', 'mlp.3.')


def convert(state: dict[str, Tensor], num_heads: Optional[int] = None) -> tuple[dict[str, Tensor], Notes]:
    """Convert torchvision's keys to ``backbone.*`` and ``head.*``; old files have other names in the FFN.

    Args:
        num_heads: Number of attention heads, which the file does not hold; None: that of a ViT of this size.

    Raises:
        UserError: The weights are not those of a ViT of torchvision, or ``num_heads`` does not fit them.
    """
    dim = len(need(state, 'conv_proj.weight', KIND))
    former = 'encoder.layers.encoder_layer_0.mlp.linear_1.weight' in state
    table = encoder_table(state, KIND, 'encoder_layer_', swag.BLOCK if former else BLOCK)
    positions = 'encoder.pos_embedding'
    table[positions] = ('backbone.pos_embed', (1, need(state, positions, KIND).numel() // dim, dim))
    table.update(classes_table(state, KIND, 'heads'))
    converted = rename(state, table, KIND)
    # torchvision has SWAG's weights, too.
    notes = classifier_notes(converted, 'torchvision_vit', KIND, num_heads, 'cls_token', swag.CONFIGS)
    notes.remarks.append(position_remark(notes, 'torchvision'))
    return converted, notes
