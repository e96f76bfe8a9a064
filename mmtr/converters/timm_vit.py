"""A timm (or DeiT) ViT classifier -> the stock backbone, to start training from."""

from mmtr.weights.files import read_checkpoint

from .vit import backbone_notes, fold_patch_bias, rename, vit_table

KIND = 'a plain timm ViT'
DROPPED = ('head.weight', 'head.bias', 'pre_logits.fc.weight', 'pre_logits.fc.bias')


def read(path):
    """(state, ) from a ``.pth`` or ``.safetensors`` file; DeiT keeps it under 'model'."""
    checkpoint = read_checkpoint(path)
    nested = (checkpoint.get(key) for key in ('model', 'state_dict'))
    return (next((state for state in nested if isinstance(state, dict)), checkpoint),)


def convert(state):
    """timm's keys -> the backbone's, without prefix; the classifier is dropped. Raises ``UserError``."""
    converted = rename(state, vit_table(state, KIND), KIND, DROPPED)
    fold_patch_bias(converted)
    notes = backbone_notes(converted, 'timm_vit', KIND)
    notes.remarks.append(
        "The image normalisation is not in the file: mean = std = 127.5 for AugReg, ImageNet's for DeiT."
    )
    return converted, notes
