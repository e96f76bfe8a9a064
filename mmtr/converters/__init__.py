"""Convert official checkpoints to OpenMMLab keys, one file a source.

A source is a module with ``read(path)``, which returns the arguments of its pure function
``convert(state, ...) -> (state_dict, Notes)``. To add a source, add a file here and a line to ``SOURCES``.
"""

from . import (
    augreg_npz,
    cropr,
    dar,
    dinov2,
    dinov3,
    eomt,
    eva02,
    mae,
    maskdino,
    sam,
    segmenter,
    swag,
    swin,
    timm_vit,
    torchvision_vit,
    vitdet,
)

SOURCES = {
    'segmenter': segmenter,
    'timm_vit': timm_vit,
    'augreg_npz': augreg_npz,
    'eva02': eva02,
    'cropr': cropr,
    'dinov2': dinov2,
    'dinov3': dinov3,
    'dar': dar,
    'swin': swin,
    'maskdino': maskdino,
    'swag': swag,
    'torchvision_vit': torchvision_vit,
    'mae': mae,
    'vitdet': vitdet,
    'sam': sam,
    'eomt': eomt,
}
