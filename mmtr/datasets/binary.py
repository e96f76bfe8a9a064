"""Data sets of foreground and background: saliency, camouflage, blur, polyps, skin lesions, cells."""

from collections.abc import Sequence
from typing import Optional

import mmcv
import numpy as np
from mmengine import fileio
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations

from mmtr.config.types import type_name
from mmtr.errors import UserError
from mmtr.registry import DATASETS, TRANSFORMS

IGNORED = 255
# Masks that were resized or saved as JPEG have grey values along borders: 0.6% to 11% of the pixels in those we tried.
MAX_GREY_SHARE = 0.25


@DATASETS.register_module()
class BinaryDataset(BaseSegDataset):
    """Data set of images with one mask each, which ``mmtr.LoadBinaryAnnotations`` loads.

    Args:
        foreground: Labels of the foreground, if the masks are label maps of several classes; None: the masks have the
            values 0 and 255.
        pipeline: Steps of the pipeline.
        kwargs: Arguments of mmseg's ``BaseSegDataset``.

    Raises:
        UserError: The pipeline has mmseg's ``LoadAnnotations``, for which 255 means 'ignored'.
    """

    METAINFO = dict(classes=('background', 'foreground'), palette=[[0, 0, 0], [255, 255, 255]])

    def __init__(self, foreground: Optional[Sequence[int]] = None, pipeline: Sequence = (), **kwargs):
        if any(isinstance(step, dict) and type_name(step['type']) == 'LoadAnnotations' for step in pipeline):
            raise UserError(
                "mmtr.BinaryDataset's pipeline must load masks by type='mmtr.LoadBinaryAnnotations', not "
                "'LoadAnnotations', for which 255 is 'ignored'."
            )
        self.foreground = foreground
        super().__init__(pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images as ``BaseSegDataset`` does, and add ``foreground`` to each."""
        return [dict(info, foreground=self.foreground) for info in super().load_data_list()]


@TRANSFORMS.register_module()
class LoadBinaryAnnotations(LoadAnnotations):
    """Loads the mask of an image of ``mmtr.BinaryDataset`` as labels: 0 background, 1 foreground, 255 ignored.

    In a mask, values above 127 are foreground, and no pixel is ignored. In a label map, 255 is ignored.

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


def read_mask(path: str, backend_args: Optional[dict] = None) -> np.ndarray:
    """Read a binary mask, (H, W) uint8 from 0 to 255.

    Args:
        backend_args: Of mmengine's ``fileio.get``.

    Raises:
        UserError: The file is no image, or the mask is not binary.
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
