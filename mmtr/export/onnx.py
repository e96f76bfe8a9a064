"""Export a segmentor, a classifier or an EoMT to an ONNX file, and compare the file with the model."""

import importlib.util
import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmtr.checks.data import check_data, images_in
from mmtr.config.model import model_of
from mmtr.errors import UserError
from mmtr.inference.model import image_channels
from mmtr.reducers import TokenReducer
from mmtr.reducers.reduces import reduces

from .pixels import PixelQueries, PixelSegmentor, of_pixels

PAGE = 'docs/deploy.md'
#: Largest number of values of a constant, such as a shape, from which others are computed before the file is written.
SMALL = 16


def check_packages() -> None:
    """Raise a ``UserError`` if torch is too old or a package that the export needs is not installed."""
    if torch.__version__ < (2, 6):
        raise UserError(f'Export to ONNX needs torch 2.6 or later, not {torch.__version__}.')
    absent = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if importlib.util.find_spec(name) is None]
    if absent:
        # The command pins numpy: these packages may require another version than OpenMMLab.
        raise UserError(
            f'Export to ONNX needs {" and ".join(absent)}, which is not installed: pip install mmtr[onnx] '
            f'numpy=={np.__version__}, or pip install onnx onnxscript onnxruntime numpy=={np.__version__}.'
        )


def _translations():
    """Translations to ONNX of operators that torch's exporter does not know: {operator: function}."""
    from onnxscript import opset18 as op

    def sort_stable(x, stable=True, dim=-1, descending=False):
        # TopK is stable: by its specification, equal values keep the order of their positions.
        size = op.Reshape(op.Gather(op.Shape(x), op.Constant(value_int=dim)), op.Constant(value_ints=[1]))
        return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)

    def cdist(a, b, p, compute_mode=None):
        if p != 2:
            raise NotImplementedError  # in ONNX this would need all differences, (B, N, M, C)
        axis, factor = op.Constant(value_ints=[2]), op.Constant(value_float=2.0)
        norms = op.Add(op.ReduceSumSquare(a, axis), op.Transpose(op.ReduceSumSquare(b, axis), perm=[0, 2, 1]))
        product = op.MatMul(a, op.Transpose(b, perm=[0, 2, 1]))
        return op.Sqrt(op.Relu(op.Sub(norms, op.Mul(factor, product))))

    return {torch.ops.aten.sort.stable: sort_stable, torch.ops.aten._cdist_forward.default: cdist}


def export_onnx(model: nn.Module, path: str, shape: tuple[int, int]) -> None:
    """Write a model as ONNX: ``image`` to the outputs of ``of_pixels``.

    The batch size is dynamic; height and width are fixed.

    Args:
        model: The segmentor, in eval mode, on the CPU.
        path: The file.
        shape: (H, W) of the images, in pixels.

    Raises:
        UserError: A package is missing or torch too old, the model is of another task, its number of tokens depends
            on the image, or it uses an operator that ONNX lacks.
    """
    check_packages()
    from onnxscript import optimizer
    from torch.nn.attention import SDPBackend, sdpa_kernel

    whole = of_pixels(model)
    adaptive = [type(m).__name__ for m in model.modules() if isinstance(m, TokenReducer) and not m.fixed_count]
    if adaptive:
        raise UserError(
            f'{adaptive[0]} cannot be exported: how many tokens it keeps depends on the image, and the '
            f'shapes in the file are fixed. {PAGE} names the methods that can.'
        )
    pixels = torch.zeros(2, image_channels(model), *shape, dtype=torch.uint8)
    try:
        # The output of a fused kernel has other strides than the exporter's translation of it.
        with _quiet(), sdpa_kernel(SDPBackend.MATH):
            # The exporter would take a batch of 1 for a constant, so the example has 2 images.
            program = torch.onnx.export(
                whole,
                (pixels,),
                dynamo=True,
                dynamic_shapes=dict(image={0: torch.export.Dim('batch')}),
                input_names=['image'],
                output_names=list(whole.outputs),
                verbose=False,
                optimize=False,
                custom_translation_table=_translations(),
            )
            # Larger constants are left to onnxruntime: here onnx's reference implementation would compute them, which
            # is slow, and whose Resize is wrong from 10 rows to 14, and at some other scales.
            optimizer.optimize_ir(program.model, num_iterations=1, input_size_limit=SMALL)
            if isinstance(program.model.graph.inputs[0].shape[0], int):
                raise UserError(
                    'The model cannot be exported: it uses the number of images as a constant, as len(x) of a tensor '
                    'does in place of x.shape[0], so that the file would take batches of 2 alone.'
                )
            program.save(str(path), external_data=False)
    except torch.onnx.OnnxExporterError as error:
        operator = re.search(r'target=torch\.ops\.([\w.]+)', str(error))
        if operator is None:
            raise
        raise UserError(
            f'The model cannot be exported: it uses the operator {operator[1]}, which ONNX lacks. {PAGE} '
            'names the settings that can be.'
        ) from error


@contextmanager
def _quiet():
    """Context without the exporter's warnings about torchvision, which is not used, and about its internals."""
    logs = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript')]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for log, level in zip(logs, levels):
            log.setLevel(level)


def session(path: str) -> Any:
    """Open an onnxruntime ``InferenceSession`` on the CPU with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait would slow down PyTorch, which is timed in turns with this session.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def default_shape(cfg: Config) -> tuple[int, int]:
    """Return the input size (H, W) of a config's model: its sliding window, else its training crop.

    Of a classifier and an EoMT, the size that the backbone is for.

    Raises:
        UserError: The config says neither.
    """
    model = model_of(cfg)
    shape = (model.get('test_cfg') or {}).get('crop_size') or (model.get('data_preprocessor') or {}).get('size')
    if shape is None and (model.get('head') or model.get('panoptic_head')):
        shape = (model.get('backbone') or {}).get('img_size')
        shape = (shape, shape) if isinstance(shape, int) else shape
    if shape is None:
        raise UserError(
            'The config has neither model.test_cfg.crop_size nor model.data_preprocessor.size: give --shape H W.'
        )
    return tuple(shape)


def _to_shape(pixels, shape):
    return torch.from_numpy(np.atleast_3d(mmcv.imresize(pixels, shape[::-1]))).permute(2, 0, 1)


def read_images(paths: Iterable[str], shape: tuple[int, int], channels: int = 3) -> list[Tensor]:
    """Read image files, and those in folders, and resize them to ``shape`` (H, W): (channels, H, W) each, uint8, BGR.

    Raises:
        UserError: A file is not there, is no image, or has another number of channels.
    """
    images = []
    files = [file for path in paths for file in (images_in(path) if Path(path).is_dir() else [path])]
    for path in files:
        try:
            pixels = mmcv.imread(str(path), {1: 'grayscale', 3: 'color'}.get(channels, 'unchanged'))
        except FileNotFoundError:
            pixels = None
        if pixels is None:
            raise UserError(f"'{path}' is not there or is no image.")
        found = np.atleast_3d(pixels).shape[2]
        if found != channels:
            raise UserError(f"'{path}' has {found} channels, but the model takes images of {channels}.")
        images.append(_to_shape(pixels, shape))
    return images


def test_images(cfg: Config, count: int, shape: tuple[int, int]) -> list[Tensor]:
    """Load the first ``count`` images of a config's test data, and resize them to ``shape``: (C, H, W) each, uint8.

    Raises:
        UserError: The data are not there.
    """
    check_data(cfg, ('test_dataloader',))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        images = [dataset[i]['inputs'] for i in range(min(count, len(dataset)))]
    return [_to_shape(image.permute(1, 2, 0).numpy(), shape) for image in images]


def predict(model: nn.Module, image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Compute the first two outputs of ``of_pixels(model)`` for one image (C, H, W) by the model's own way."""
    whole = of_pixels(model)
    if isinstance(whole, PixelQueries):
        with torch.inference_mode():
            classes, masks = model(model.data_preprocessor(dict(inputs=[image]))['inputs'], mode='tensor')
        return masks[-1][0].numpy(), classes[-1][0].argmax(1).numpy()
    if not isinstance(whole, PixelSegmentor):
        with torch.inference_mode():
            result = model.test_step(dict(inputs=[image]))[0]
        return result.pred_score.numpy(), result.pred_label[0].numpy()
    shape = tuple(image.shape[1:])
    sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
    with torch.inference_mode():
        result = model.test_step(dict(inputs=[image], data_samples=[sample]))[0]
    return result.seg_logits.data.numpy(), result.pred_sem_seg.data[0].numpy()


@dataclass(frozen=True)
class Difference:
    """Difference of the outputs of ONNX and PyTorch on some images.

    Args:
        batch: Number of images in each batch of onnxruntime; PyTorch ran them one at a time.
        largest: Largest absolute difference of a logit or score.
        median: Median over the pixels, or images, of the largest absolute difference of their logits or scores.
        same_label: Share of pixels, or images, with the same label, 0 to 1.
    """

    batch: int
    largest: float
    median: float
    same_label: float


def compare_with_onnx(model: nn.Module, run: Callable, images: Sequence[Tensor]) -> list[Difference]:
    """Compare an ONNX file with PyTorch, on one image at a time and on one batch of all images.

    PyTorch runs each image alone, so an output that depends on the other images of its batch shows as a difference.

    Args:
        model: The exported model.
        run: ``session(path).run`` of the file.
        images: (C, H, W) each, uint8.
    """
    expected, labels = (np.stack(each) for each in zip(*(predict(model, image) for image in images)))
    batch = torch.stack(list(images)).numpy()
    differences = []
    for size in (1, len(batch)):
        parts = [run(None, {'image': batch[i : i + size]}) for i in range(0, len(batch), size)]
        got = [np.concatenate(each) for each in zip(*parts)]
        apart = np.abs(got[0] - expected).max(1)
        differences.append(
            Difference(size, float(apart.max()), float(np.median(apart)), float((got[1] == labels).mean()))
        )
    return differences


def check_difference(
    model: nn.Module, differences: Sequence[Difference], tolerance: float, same_label: float = 0.95
) -> None:
    """Raise a ``UserError`` if ONNX and PyTorch differ by more than rounding.

    The largest difference must be within the tolerance. With a reducer, which compares tokens, rounding decides between
    equally similar ones, so there the median difference must be. The labels must agree in both cases.

    Args:
        model: The exported model.
        differences: Results of ``compare_with_onnx``.
        tolerance: Largest absolute difference of logits.
        same_label: Least share of pixels with the same label, 0 to 1.
    """
    reduced = any(map(reduces, model.modules()))
    whole = of_pixels(model)
    for found in differences:
        value, name = (found.median, 'median') if reduced else (found.largest, 'largest')
        # Written so that NaN fails too.
        if not (value <= tolerance and found.same_label >= same_label):
            raise UserError(
                f'ONNX differs from PyTorch in batches of {found.batch}: the {name} difference of the '
                f'{whole.outputs[0]} is {value:.2g}, and {found.same_label:.2%} of the {whole.unit}s have the same '
                f'label; at most {tolerance:g} and at least {same_label:.0%} are expected.'
            )
