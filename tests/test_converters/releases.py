"""A file of each source as it is released, of a tiny model with random weights."""

import eomt_layout
import numpy as np
import torch
import yaml
from classifier_layouts import TORCHVISION, encoder_state, timm_state
from dinov2_layout import DINOv2
from dinov3_layout import release_state
from eva02_layout import eva02_state
from maskdino_state import head_state
from official_layouts import augreg_state, draw, mask_state, variant, vit_shapes
from safetensors.torch import save_file
from test_dar import tuned_state
from test_eva02 import cropr_state
from test_maskdino import WIDTHS, resnet_state
from test_swin import official
from vitdet_layout import sam_state, vitdet_state


def write(source, path):
    """Write the file, or the folder, that ``tools/convert_checkpoint.py --source`` reads."""
    if source == 'segmenter':
        path.mkdir()
        torch.save(dict(model=mask_state()), path / 'checkpoint.pth')
        (path / 'variant.yml').write_text(yaml.dump(variant(decoder=dict(name='mask_transformer', n_layers=2))))
        return
    if source == 'augreg_npz':
        np.savez(path, **{key: value.numpy() for key, value in augreg_state().items()})
        return
    if source == 'dar':  # beside it lies the DINOv2 of that width, which has no name at this one
        torch.save(DINOv2(0).state_dict(), path.with_name('dinov2_vit?14_pretrain.pth'))
    tiny = dict(dim=192, layers=12, hidden=768)  # of a size whose number of heads is known
    state = dict(
        timm_vit=lambda: draw(vit_shapes()),
        eva02=lambda: eva02_state(True),
        dinov2=lambda: DINOv2(0).state_dict(),
        dinov3=release_state,
        cropr=lambda: dict(model=cropr_state(True)),
        dar=tuned_state,
        swag=lambda: encoder_state(**tiny),
        torchvision_vit=lambda: encoder_state(TORCHVISION, **tiny),
        mae=lambda: dict(model=timm_state(**tiny)),
        swin=lambda: dict(model=official()),
        vitdet=lambda: dict(model=vitdet_state()),
        sam=sam_state,
        eomt=lambda: eomt_layout.release_state(eomt_layout.EoMT()),
        maskdino=lambda: dict(model={**resnet_state(), **head_state(WIDTHS, encoded=3, extra=1)}),
    )[source]()
    save_file(state, path) if path.suffix == '.safetensors' else torch.save(state, path)
