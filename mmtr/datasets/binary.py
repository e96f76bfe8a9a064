"""Foreground and background: saliency, camouflage, blur, polyps, skin lesions, cells."""

import mmcv
import numpy as np
from mmengine import fileio
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations

from mmtr.config.types import type_name
from mmtr.errors import UserError
from mmtr.registry import DATASETS, TRANSFORMS

IGNORED = 255
# Masks saved as JPEG or resized have other values along the border: 0.6% to 11% of the pixels where this was tried.
MAX_GREY_SHARE = 0.25


@DATASETS.register_module()
class BinaryDataset(BaseSegDataset):
    """Images with a mask each, which ``mmtr.LoadBinaryAnnotations`` loads.

    Args:
        foreground: The labels that are foreground, if the masks are label maps of several classes; None: they are
            masks of 0 and 255.
        kwargs: mmseg's ``BaseSegDataset``'s.

    Raises:
        UserError: The pipeline loads masks as label maps, in which 255 is no foreground.
    """

    METAINFO = dict(classes=('background', 'foreground'), palette=[[0, 0, 0], [255, 255, 255]])

    def __init__(self, foreground=None, pipeline=(), **kwargs):
        if any(isinstance(step, dict) and type_name(step['type']) == 'LoadAnnotations' for step in pipeline):
            raise UserError(
                "mmtr.BinaryDataset's pipeline must load masks by type='mmtr.LoadBinaryAnnotations', not "
                "'LoadAnnotations', for which 255 is 'ignored'."
            )
        self.foreground = foreground
        super().__init__(pipeline=pipeline, **kwargs)

    def load_data_list(self):
        """As of ``BaseSegDataset``; each image with ``foreground``."""
        return [dict(info, foreground=self.foreground) for info in super().load_data_list()]


@TRANSFORMS.register_module()
class LoadBinaryAnnotations(LoadAnnotations):
    """Loads the mask of an image of ``mmtr.BinaryDataset`` as labels: 0 background, 1 foreground, 255 ignored.

    In a mask, what is above 127 is foreground and nothing is ignored; in a label map 255 is.

    Raises:
        UserError: The mask is no image, or not binary; names the file.
    """

    def _load_seg_map(self, results):
        foreground = results.get('foreground')
        if foreground is None:
            mask = read_mask(results['seg_map_path'], self.backend_args)
            results['gt_seg_map'] = (mask > 127).astype(np.uint8)
            results['seg_fields'].append('gt_seg_map')
        else:
            super()._load_seg_map(results)
            labels = results['gt_seg_map']
            results['gt_seg_map'] = np.where(labels == IGNORED, IGNORED, np.isin(labels, foreground)).astype(np.uint8)


def read_mask(path, backend_args=None):
    """The mask in a file, (H, W) with 0 to 255.

    Raises:
        UserError: It is no image, or not binary.
    """
    content = fileio.get(path, backend_args=backend_args)
    mask = mmcv.imfrombytes(content, flag='grayscale', backend='cv2') if content else None
    if mask is None:
        raise UserError(f"The mask '{path}' cannot be read as an image.")
    counts = np.bincount(mask.ravel(), minlength=256)
    values = np.flatnonzero(counts)
    grey = 1 - (counts[0] + counts[255]) / mask.size
    if 0 < values[-1] <= 127:
        what = 'none above 127'
    elif grey > MAX_GREY_SHARE:
        what = f'{grey:.0%} of it is neither 0 nor 255'
    else:
        return mask
    raise UserError(
        f"The mask '{path}' is not binary, it has the values {_listed(values)}, {what}; a mask is 0 for background and "
        '255 for foreground. Where the files are label maps, name the labels that are foreground in the data set, e.g. '
        'foreground=[1].'
    )


def _listed(values):
    shown = [str(value) for value in values]
    return ', '.join(shown if len(shown) <= 8 else [*shown[:4], '...', *shown[-3:]])
