"""Convert a timm (or DeiT) ViT classifier to the stock backbone, to start training from."""

from torch import Tensor

from mmtr.weights.files import read_checkpoint

from .vit import Notes, backbone_notes, fold_patch_bias, rename, vit_table

KIND = 'a plain timm ViT'
DROPPED = ('head.weight', 'head.bias', 'pre_logits.fc.weight', 'pre_logits.fc.bias')


def read(path: str) -> tuple[dict[str, Tensor]]:
    """Read (state, ) from a ``.pth`` or ``.safetensors`` file; DeiT stores it under 'model'. Raises ``UserError``."""
    checkpoint = read_checkpoint(path)
    nested = (checkpoint.get(key) for key in ('model', 'state_dict'))
    return (next((state for state in nested if isinstance(state, dict)), checkpoint),)


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Notes]:
    """Convert timm's keys to the backbone's, without prefix; drop the classifier.

    Raises:
        UserError: The weights are not those of a plain timm ViT.
    """
    converted = rename(state, vit_table(state, KIND), KIND, DROPPED)
    fold_patch_bias(converted)
    notes = backbone_notes(converted, 'timm_vit', KIND)
    notes.remarks.append(
        "The image normalisation is not in the file: mean = std = 127.5 for AugReg, ImageNet's for DeiT."
    )
    return converted, notes
