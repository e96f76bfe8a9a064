import importlib.util

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmtr.apis import apply_token_reduction
from mmtr.errors import UserError
from mmtr.export import onnx as export
from mmtr.export.pixels import PixelSegmentor
from mmtr.inference.model import build_model
from mmtr.registry import TOKEN_REDUCERS

TOKEN_REDUCERS.import_from_location()
SHAPE = (80, 112)
# Every method with its defaults, and settings that use operators of their own. Two layers, since export is slow.
EXPORTED = [
    *(
        dict(type=name)
        for name, method in sorted(TOKEN_REDUCERS.module_dict.items())
        if method.fixed_count and not method.trained
    ),
    dict(type='Cropr', layers=(0,), r=0.5, fusion='none'),
    dict(type='Cropr', layers=(0,), r=0.5, fusion='none', restore='residual', region=3),
    dict(type='TokenAdapter', score='attn', metric='euclidean', mode='threshold', tau=-1.0),
    dict(type='ToMe', mode='progressive', layers=(1, 2)),
]
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ('onnx', 'onnxscript', 'onnxruntime'))
    or torch.__version__ < (2, 6),
    reason='onnx, onnxscript or onnxruntime is not installed, or torch too old for them',
)


PLAIN = dict(img_size=(64, 96), embed_dims=32, num_layers=2, num_heads=4)
VIT = dict(PLAIN, type='mmtr.VisionTransformer', final_norm=True)
SWIN = dict(
    type='mmtr.SwinTransformer',
    embed_dims=32,
    depths=(2,),
    num_heads=(4,),
    strides=(4,),
    out_indices=(0,),
    window_size=6,
)


def segmentor(token_reduction=None, backbone=VIT, **head):
    """A segmentor with random weights, on a backbone with 32 channels."""
    torch.manual_seed(0)
    model = build_model(
        Config(
            dict(
                model=dict(
                    type='EncoderDecoder',
                    data_preprocessor=dict(
                        type='SegDataPreProcessor', mean=[120.0, 110.0, 100.0], std=[60.0, 61.0, 62.0], bgr_to_rgb=True
                    ),
                    backbone=dict(token_reduction=token_reduction, **backbone),
                    decode_head=dict(
                        dict(
                            type='FCNHead',
                            in_channels=32,
                            channels=32,
                            in_index=0,
                            num_convs=0,
                            concat_input=False,
                            num_classes=5,
                            norm_cfg=None,
                        ),
                        **head,
                    ),
                    test_cfg=dict(mode='whole'),
                )
            )
        )
    )
    # Fresh weights are so small that layers hardly change a token: a mistake would not show.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def images(count=3):
    """Noise on a gradient of its own in each image, uint8."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(3, *SHAPE, generator=generator) * 120 + torch.linspace(0, 40 * i, SHAPE[1])).to(torch.uint8)
        for i in range(1, count + 1)
    ]


@needs_onnx
@pytest.mark.slow  # the tool's tests export every day
@pytest.mark.parametrize('token_reduction', EXPORTED, ids=str)
def test_onnx_says_what_pytorch_says(token_reduction, tmp_path):
    model = segmentor(token_reduction)
    export.export_onnx(model, tmp_path / 'a.onnx', SHAPE)
    session = export.session(tmp_path / 'a.onnx')
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ('image', 'tensor(uint8)', ['batch', 3, *SHAPE])
    ]
    alone, together = export.compare_with_onnx(model, session.run, images())
    assert (alone.batch, together.batch) == (1, 3)
    for found in (alone, together):
        # Where the two best logits are equal but for rounding, a pixel may have either label.
        assert found.largest < 1e-4 and found.same_label > 0.999
    logits, labels = session.run(None, {'image': torch.stack(images()).numpy()})
    assert (labels == logits.argmax(1)).all()
    plain, _ = export.compare_with_onnx(apply_token_reduction(model, None), session.run, images())
    assert plain.largest > 1e-2, 'the file must hold the reduction'


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    'token_reduction',
    [dict(type=name) for name, method in sorted(TOKEN_REDUCERS.module_dict.items()) if method.leaves_grid],
    ids=str,
)
def test_a_swin_in_onnx_says_what_it_says_in_pytorch(token_reduction, tmp_path):
    model = segmentor(token_reduction, SWIN)
    export.export_onnx(model, tmp_path / 'a.onnx', SHAPE)
    session = export.session(tmp_path / 'a.onnx')
    for found in export.compare_with_onnx(model, session.run, images()):
        assert found.largest < 1e-4 and found.same_label > 0.999
    plain, _ = export.compare_with_onnx(apply_token_reduction(model, None), session.run, images())
    assert plain.largest > 1e-2, 'the file must hold the reduction'


@pytest.mark.parametrize('head', [{}, dict(num_classes=2, out_channels=1, threshold=0.4)], ids=['classes', 'binary'])
def test_pixels_to_labels_is_the_test_step_of_mmseg(head):
    model = segmentor(**head)
    with torch.no_grad():
        logits, labels = PixelSegmentor(model)(torch.stack(images()))
    for image, own_logits, own_labels in zip(images(), logits, labels):
        expected = export.predict(model, image)
        torch.testing.assert_close(own_logits, torch.from_numpy(expected[0]), atol=1e-5, rtol=1e-5)
        assert (own_labels.numpy() == expected[1]).all()
    assert 0 < labels.float().mean()


def test_an_image_that_depends_on_its_batch_is_a_difference():
    model = segmentor()

    def run(mixing):
        def call(_, inputs):
            with torch.no_grad():
                logits, labels = PixelSegmentor(model)(torch.from_numpy(inputs['image']))
            return (logits + mixing * (logits.mean(0) - logits)).numpy(), labels.numpy()

        return call

    alone, together = export.compare_with_onnx(model, run(0.5), images())
    assert alone.largest < 1e-5 and together.largest > 1e-2
    with pytest.raises(UserError, match='in batches of 3: the largest difference'):
        export.check_difference(model, [alone, together], 1e-3)
    export.check_difference(model, export.compare_with_onnx(model, run(0.0), images()), 1e-3)


@pytest.mark.parametrize(
    'token_reduction, largest, median, same_label, passes',
    [
        (None, 5e-4, 1e-6, 1.0, True),
        (None, 5e-3, 1e-6, 1.0, False),
        (None, float('nan'), float('nan'), 1.0, False),
        (dict(type='ToMe'), 1.0, 1e-6, 0.96, True),
        (dict(type='ToMe'), 1.0, 5e-3, 1.0, False),
        (dict(type='ToMe'), 1.0, 1e-6, 0.94, False),
    ],
)
def test_what_rounding_explains(token_reduction, largest, median, same_label, passes):
    found = [export.Difference(1, largest, median, same_label)]
    if passes:
        export.check_difference(segmentor(token_reduction), found, 1e-3)
    else:
        with pytest.raises(UserError, match='ONNX differs from PyTorch'):
            export.check_difference(segmentor(token_reduction), found, 1e-3)


@needs_onnx
@pytest.mark.parametrize(
    'model, sentence',
    [
        (lambda: segmentor(dict(type='ALGM', global_layer=None)), 'ALGM cannot be exported'),
        (lambda: segmentor().backbone, 'A VisionTransformer cannot be exported'),
        pytest.param(
            lambda: segmentor(dict(type='TokenAdapter', metric='manhattan')),
            'uses the operator aten._cdist_forward',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_exported_is_said(model, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        export.export_onnx(model(), tmp_path / 'a.onnx', SHAPE)


def test_missing_packages_and_an_old_torch_are_said(monkeypatch):
    monkeypatch.setattr(torch, '__version__', type(torch.__version__)('2.5.1'))
    with pytest.raises(UserError, match='Export to ONNX needs torch 2.6 or later, not 2.5.1'):
        export.check_packages()
    monkeypatch.setattr(torch, '__version__', type(torch.__version__)('2.6.0'))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'onnx and onnxscript and onnxruntime.*pip install mmtr\[onnx\]'):
        export.check_packages()


def test_shape_is_the_window_or_the_crop():
    def cfg(**test_cfg):
        return Config(dict(model=dict(test_cfg=test_cfg, data_preprocessor=dict(size=(64, 96)))))

    assert export.default_shape(cfg(mode='slide', crop_size=(32, 48))) == (32, 48)
    assert export.default_shape(cfg(mode='whole')) == (64, 96)
    with pytest.raises(UserError, match='give --shape H W'):
        export.default_shape(Config(dict(model=dict())))


def test_images_are_read_and_resized(tmp_path, tiny_segmenter):
    import cv2

    cv2.imwrite(str(tmp_path / 'blue.png'), np.full((10, 20, 3), (200, 100, 50), np.uint8))
    (image,) = export.read_images([tmp_path / 'blue.png'], (8, 12))
    assert image.shape == (3, 8, 12) and image.flatten(1).float().mean(1).tolist() == [200, 100, 50]
    (tmp_path / 'text.png').write_text('no image')
    for name in ('text.png', 'nowhere.png'):
        with pytest.raises(UserError, match=f'{name}.* is not there or is no image'):
            export.read_images([str(tmp_path / name)], (8, 12))
    of_data = export.test_images(tiny_segmenter, 4, (32, 48))
    assert [tuple(i.shape) for i in of_data] == [(3, 32, 48)] * 4
