"""Convert MAE's ViTs, pretrained or fine-tuned, to mmpretrain's ``ImageClassifier``."""

from typing import Optional

from torch import Tensor

from .classifier import classifier_notes, head_table
from .timm_vit import read
from .vit import MMPRETRAIN, Notes, Table, rename, vit_table

__all__ = ['CONFIGS', 'classifier_table', 'convert', 'pools', 'read']
KIND = "MAE's ViT"
CONFIGS = {('large', 16, 224): 'mae_vit-l_imagenet.py', ('base', 16, 224): 'mae_vit-b_imagenet.py'}


def convert(state: dict[str, Tensor], num_heads: Optional[int] = None) -> tuple[dict[str, Tensor], Notes]:
    """Convert the release's keys to ``backbone.*`` and ``head.*``; drop the decoder of pretraining.

    Args:
        num_heads: Number of attention heads, which the file does not hold; None: that of a ViT of this size.

    Raises:
        UserError: The weights are not those of a ViT of MAE, or ``num_heads`` does not fit them.
    """
    dropped = [key for key in state if key.startswith('decoder_') or key == 'mask_token']
    converted = rename(state, classifier_table(state, KIND), KIND, dropped)
    classifier = 'head.fc.weight' in converted
    out_type = 'avg_featmap' if pools(state) or not classifier else 'cls_token'
    notes = classifier_notes(converted, 'mae', KIND, num_heads, out_type, CONFIGS)
    if dropped:
        notes.remarks.append('The decoder and the mask token, which only pretraining uses, were left behind.')
    if not classifier:
        notes.settings['backbone.final_norm'] = False
        notes.remarks.append('Fine-tuning reads the mean of the patches, so the last norm of the file is not used.')
    elif out_type == 'cls_token':
        notes.fits = None
        notes.remarks.append(
            "Its head reads the class token. The same keys are those of timm's and DeiT's classifiers, whose images "
            "may be normalised otherwise than with ImageNet's mean and std: the file does not say."
        )
    else:
        notes.remarks.append(
            "Its head reads the mean of the patches, as MAE's does. A model of Cropr's release that was trained "
            'without pruning has the same keys and reads the class token too: convert that with --source cropr.'
        )
    return converted, notes


def classifier_table(state: dict[str, Tensor], kind: str) -> Table:
    """Build the table for ``rename`` of a timm classifier, or of its backbone, for mmpretrain.

    Args:
        kind: Name of the source in errors.
    """
    table = vit_table(state, kind, target='backbone.', new=MMPRETRAIN)
    if pools(state):
        for name in ('weight', 'bias'):
            _, shape = table.pop(f'norm.{name}')
            table[f'fc_norm.{name}'] = (f'backbone.ln2.{name}', shape)
    if any(key.startswith('head.') for key in state):
        table.update(head_table(state, kind, 'head', 'head.fc'))
    return table


def pools(state: dict[str, Tensor]) -> bool:
    """Whether the head of a timm classifier reads a mean, which has a norm of its own, and not the class token."""
    return any(key.startswith('fc_norm.') for key in state)
