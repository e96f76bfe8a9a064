"""A segmentor or classifier as an ONNX file, and whether that file says what the model says."""

import importlib.util
import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.registry import DATASETS, DefaultScope
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmtr.checks.data import check_data, images_in
from mmtr.config.model import model_of
from mmtr.errors import UserError
from mmtr.inference.model import image_channels
from mmtr.reducers import TokenReducer

from .pixels import PixelSegmentor, of_pixels

PAGE = 'docs/deploy.md'


def check_packages() -> None:
    """Raise a ``UserError`` if a package that export needs is not installed, or torch is too old."""
    if torch.__version__ < (2, 6):
        raise UserError(f'Export to ONNX needs torch 2.6 or later, not {torch.__version__}.')
    absent = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if importlib.util.find_spec(name) is None]
    if absent:
        # Each may ask for another numpy, which the stack does not stand.
        raise UserError(
            f'Export to ONNX needs {" and ".join(absent)}, which is not installed: pip install mmtr[onnx] '
            f'numpy=={np.__version__}, or pip install onnx onnxscript onnxruntime numpy=={np.__version__}.'
        )


def _translations():
    """ONNX for operators of torch that torch's exporter does not know, as functions that it runs on its values."""
    from onnxscript import opset18 as op

    def sort_stable(x, stable=True, dim=-1, descending=False):
        # TopK gives equal values in order of position: its specification says so.
        size = op.Reshape(op.Gather(op.Shape(x), op.Constant(value_int=dim)), op.Constant(value_ints=[1]))
        return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)

    def cdist(a, b, p, compute_mode=None):
        if p != 2:
            raise NotImplementedError  # ONNX could only build all differences, (B, N, M, C)
        axis, factor = op.Constant(value_ints=[2]), op.Constant(value_float=2.0)
        norms = op.Add(op.ReduceSumSquare(a, axis), op.Transpose(op.ReduceSumSquare(b, axis), perm=[0, 2, 1]))
        product = op.MatMul(a, op.Transpose(b, perm=[0, 2, 1]))
        return op.Sqrt(op.Relu(op.Sub(norms, op.Mul(factor, product))))

    return {torch.ops.aten.sort.stable: sort_stable, torch.ops.aten._cdist_forward.default: cdist}


def export_onnx(model: nn.Module, path: str, shape: tuple[int, int]) -> None:
    """Write a model as ONNX: ``image`` to ``logits`` or ``scores`` and ``labels``, see ``of_pixels``.

    The size of the batch is open, height and width are fixed.

    Args:
        model: Of a config, in eval mode, on the CPU.
        path: The file.
        shape: (H, W) in pixels.

    Raises:
        UserError: A package is missing or torch too old, the model is of another task, its number of tokens depends on
            the image, or it uses an operator that ONNX lacks.
    """
    check_packages()
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
        # The strides of what a fused kernel gives are not those of what the exporter makes of it.
        with _quiet(), sdpa_kernel(SDPBackend.MATH):
            # A batch of 1 would be taken for a constant, so the example has 2.
            torch.onnx.export(
                whole,
                (pixels,),
                str(path),
                dynamo=True,
                dynamic_shapes=dict(image={0: torch.export.Dim('batch')}),
                input_names=['image'],
                output_names=list(whole.outputs),
                external_data=False,
                verbose=False,
                custom_translation_table=_translations(),
            )
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
    """Without the exporter's warnings of torchvision, which nothing here uses, and of its own insides."""
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


def session(path: str):
    """An onnxruntime session on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait would take the cores from whoever runs in turns with it.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def default_shape(cfg) -> tuple[int, int]:
    """(H, W) that a config's model sees: the window it slides over an image, or the crop it was trained on.

    Of a classifier, the size of its position table.

    Raises:
        UserError: The config says neither.
    """
    model = model_of(cfg)
    shape = (model.get('test_cfg') or {}).get('crop_size') or (model.get('data_preprocessor') or {}).get('size')
    if shape is None and model.get('head'):
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
    """Image files, and those in folders, resized to ``shape``: (channels, H, W) each, uint8, BGR.

    Raises:
        UserError: One is not there, no image, or has not so many channels.
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


def test_images(cfg, count: int, shape: tuple[int, int]) -> list[Tensor]:
    """The first images of a config's test data after its pipeline, resized to ``shape``: (C, H, W) each, uint8.

    Raises:
        UserError: The data are not there.
    """
    check_data(cfg, ('test_dataloader',))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        images = [dataset[i]['inputs'] for i in range(min(count, len(dataset)))]
    return [_to_shape(image.permute(1, 2, 0).numpy(), shape) for image in images]


def predict(model: nn.Module, image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What ``of_pixels(model)`` gives, of one image (C, H, W), by the model's own test step."""
    if not isinstance(of_pixels(model), PixelSegmentor):
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
    """How far ONNX and PyTorch are apart on some images.

    Args:
        batch: Images in each batch that onnxruntime got. PyTorch got them one at a time.
        largest: The largest absolute difference of a logit or score.
        median: The median over the pixels, or images, of their largest absolute difference.
        same_label: The share of them with the same label, 0 to 1.
    """

    batch: int
    largest: float
    median: float
    same_label: float


def compare_with_onnx(model: nn.Module, run, images: Sequence[Tensor]) -> list[Difference]:
    """Compare an ONNX file with PyTorch: on one image at a time, and on one batch of all.

    Each is compared with what PyTorch says of each image alone, so that an image that depends on its
    batch is a difference.

    Args:
        model: What was exported.
        run: Of the file: ``session(path).run``.
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
    """Raise a ``UserError`` if ONNX and PyTorch are further apart than rounding explains.

    Without a reducer the largest difference must keep the tolerance. A reducer compares tokens, and where
    two are equally similar, rounding decides which: then the median pixel must, and the labels must agree.

    Args:
        model: What was exported.
        tolerance: Absolute, of logits.
        same_label: The least share of pixels with the same label, 0 to 1.
    """
    reduces = any(isinstance(m, TokenReducer) and type(m) is not TokenReducer for m in model.modules())
    whole = of_pixels(model)
    for found in differences:
        value, name = (found.median, 'median') if reduces else (found.largest, 'largest')
        # Not NaN either.
        if not (value <= tolerance and found.same_label >= same_label):
            raise UserError(
                f'ONNX differs from PyTorch in batches of {found.batch}: the {name} difference of the '
                f'{whole.outputs[0]} is {value:.2g}, and {found.same_label:.2%} of the {whole.unit}s have the same '
                f'label; at most {tolerance:g} and at least {same_label:.0%} are expected.'
            )
