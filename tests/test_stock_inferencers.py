"""The inferencers that users of mmseg and mmdet call from Python: by the key, the hook and apply_token_reduction."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmseg.apis import MMSegInferencer, inference_model, init_model

import mmtr
from mmtr import UserError, apply_token_reduction
from mmtr.inference.model import build_model
from mmtr.models.backbones.common import backbone as tunable
from tests.conftest import CLASSES
from tests.drawn_coco import draw_coco
from tests.test_models.test_maskdino_configs import CONFIGS, small

ROOT = Path(__file__).parents[1]
REDUCTION = dict(type='TokenAdapter', restore='copy', ratio=0.25, layers=(1, 2))


def save(cfg, folder, name, **changes):
    """Path of a config."""
    Config({**cfg, **changes}).dump(str(folder / f'{name}.py'))
    return str(folder / f'{name}.py')


def hook(reduction):
    return dict(custom_hooks=[dict(type='mmtr.TokenReductionHook', token_reduction=reduction)])


@pytest.fixture
def said(monkeypatch):
    """What the log was told of reductions."""
    lines = []
    monkeypatch.setattr(tunable, 'print_log', lambda line, logger: lines.append(line))
    return lines


def initial_weights(cfg, folder, init=False):
    torch.manual_seed(1)
    model = build_model(cfg)
    if init:  # of MaskDINO, some parameters are whatever was in memory
        model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'weights.pth')
    return model, str(folder / 'weights.pth')


@pytest.fixture
def segmentor(tiny_segmenter, tmp_path):
    """Configs of a stock segmentor, the same with the hook and with the key, their weights, a function from an image to
    its labels."""
    tiny_segmenter.custom_imports = dict(imports=['mmtr'])
    tiny_segmenter.test_pipeline = tiny_segmenter.test_dataloader.dataset.pipeline
    tiny_segmenter.model.decode_head = dict(
        type='FCNHead', in_channels=32, channels=8, num_convs=1, kernel_size=1, concat_input=False, num_classes=4
    )
    stock = save(tiny_segmenter, tmp_path, 'stock')
    hooked = save(tiny_segmenter, tmp_path, 'hook', **hook(REDUCTION))
    model, weights = initial_weights(tiny_segmenter, tmp_path)
    tiny_segmenter.model.backbone.update(type='mmtr.VisionTransformer', token_reduction=REDUCTION)

    def labels(path, reduction):
        pixels = torch.from_numpy(cv2.imread(path).astype(np.float32)).permute(2, 0, 1)
        normalised = (pixels - 127.5) / 64
        with torch.no_grad():
            logits = apply_token_reduction(model, reduction)(normalised[None])
            logits = torch.nn.functional.interpolate(logits, (64, 64), mode='bilinear', align_corners=False)
        return logits[0].argmax(0).numpy()

    return stock, hooked, save(tiny_segmenter, tmp_path, 'key'), weights, labels


def test_a_segmentor(segmentor, drawn_data, said):
    stock, hooked, key, weights, labels = segmentor
    path = str(drawn_data / 'images/training/2.png')
    plain, reduced = labels(path, None), labels(path, REDUCTION)
    assert (plain != reduced).any()

    inferencer = MMSegInferencer(stock, weights, device='cpu')
    assert np.array_equal(inferencer(path)['predictions'], plain)
    apply_token_reduction(inferencer.model, REDUCTION)
    assert np.array_equal(inferencer(path)['predictions'], reduced)
    apply_token_reduction(inferencer.model, None)
    assert np.array_equal(inferencer(path)['predictions'], plain)

    def predicted(model):
        return inference_model(model, path).pred_sem_seg.data[0].numpy()

    model = init_model(stock, weights, device='cpu')
    assert np.array_equal(predicted(model), plain)
    assert np.array_equal(predicted(apply_token_reduction(model, REDUCTION)), reduced)
    for config in (hooked, key):
        said.clear()
        assert np.array_equal(MMSegInferencer(config, weights, device='cpu')(path)['predictions'], reduced)
        for model in (init_model(config, weights, device='cpu'), mmtr.init_model(config, weights, 'cpu')):
            assert np.array_equal(predicted(model), reduced)
            model.cfg = model.cfg
            assert np.array_equal(predicted(model), reduced)
            assert np.array_equal(predicted(apply_token_reduction(model, None)), plain)
            assert not model.training and not any(module.training for module in model.modules())
        assert said == ['TokenAdapter: 16 -> 9 patch tokens from layer 1, in images of 4x4 patches'] * 3


def test_ours_takes_configs_options_and_pictures_in_memory(segmentor, drawn_data):
    stock, hooked, _, weights, labels = segmentor
    path = str(drawn_data / 'images/training/2.png')
    cfg = Config.fromfile(hooked)
    before = cfg.to_dict()
    model = mmtr.init_model(cfg, weights, 'cpu', {'custom_hooks.0.token_reduction.ratio': 0.5})
    assert cfg.to_dict() == before
    half = labels(path, {**REDUCTION, 'ratio': 0.5})
    assert (half != labels(path, REDUCTION)).any()
    # An array, then a file: mmseg changes the pipeline for the first.
    found = inference_model(model, cv2.imread(path)).pred_sem_seg.data[0].numpy()
    assert np.array_equal(found, half)
    assert model.dataset_meta['classes'] == list(CLASSES)
    with pytest.raises(UserError, match="Config 'no.py' is not there"):
        mmtr.init_model('no.py', weights)
    with pytest.raises(UserError, match='does not cover the model: 1 unexpected'):
        torch.save({**torch.load(weights)['state_dict'], 'more': torch.zeros(1)}, weights)
        mmtr.init_model(stock, weights, 'cpu')


def test_the_weights_of_a_method_that_was_trained_are_loaded_or_it_is_refused(segmentor, tmp_path):
    cfg = Config.fromfile(segmentor[0])
    cfg.custom_hooks = hook(dict(type='DAR'))['custom_hooks']
    path = save(cfg, tmp_path, 'trained')
    model, weights = initial_weights(cfg, tmp_path)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(mmtr.init_model(path, weights, 'cpu')(x), model(x), rtol=0, atol=0)
    with pytest.raises(UserError, match='DAR has parameters, which a hook may add too late for the checkpoint'):
        init_model(path, weights, device='cpu')


def test_a_detector(tmp_path, said):
    register_all_modules()
    cfg = small(CONFIGS[0].parent / 'maskdino_swin-t_nuclei.py', draw_coco(tmp_path / 'coco'), tmp_path)
    reduction = dict(type='TokenAdapter', stage=2, ratio=0.35, layers=(1, 2))
    cfg.model.backbone.update(type='SwinTransformer')  # mmdet's own
    model, weights = initial_weights(cfg, tmp_path, init=True)
    stock, hooked = save(cfg, tmp_path, 'stock'), save(cfg, tmp_path, 'hook', **hook(reduction))
    cfg.model.backbone.update(type='mmtr.SwinTransformer', token_reduction=reduction)
    key = save(cfg, tmp_path, 'key')
    path = str(tmp_path / 'coco/images/3.jpg')

    def predicted(inferencer):
        if isinstance(inferencer, torch.nn.Module):
            found = inference_detector(inferencer, path).pred_instances
        else:
            found = inferencer(path, return_datasamples=True)['predictions'][0].pred_instances
        return found.scores, found.bboxes

    # By hand: the image enlarged by half, as the config's pipeline does, normalised, and padded by none.
    resized = cv2.resize(cv2.imread(path), (96, 96), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    normalised = (
        torch.from_numpy(resized.astype(np.float32)) - torch.tensor([123.675, 116.28, 103.53])
    ) / torch.tensor([58.395, 57.12, 57.375])

    def expected(reduced):
        sample = DetDataSample(
            metainfo=dict(ori_shape=(64, 64), img_shape=(96, 96), batch_input_shape=(96, 96), scale_factor=(1.5, 1.5))
        )
        with torch.no_grad():
            found = apply_token_reduction(model, reduced).predict(normalised.permute(2, 0, 1)[None], [sample])
        return found[0].pred_instances.scores, found[0].pred_instances.bboxes

    plain, fewer = expected(None), expected(reduction)
    assert not torch.allclose(plain[0], fewer[0], atol=1e-4)
    inferencer = DetInferencer(stock, weights, device='cpu', show_progress=False)
    torch.testing.assert_close(predicted(inferencer), plain, atol=1e-4, rtol=1e-4)
    apply_token_reduction(inferencer.model, reduction)
    torch.testing.assert_close(predicted(inferencer), fewer)
    for config in (hooked, key):
        said.clear()
        for built in (
            DetInferencer(config, weights, device='cpu', show_progress=False),
            init_detector(config, weights, device='cpu'),
            mmtr.init_model(config, weights, 'cpu'),
        ):
            torch.testing.assert_close(predicted(built), fewer)
        assert said == ['TokenAdapter: 16 -> 9 tokens of a window from block 1, in stage 2'] * 3


@pytest.mark.slow
def test_the_documented_lines_run(tmp_path, monkeypatch):
    for name in ('configs', 'demo'):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('photo.jpg', np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8))
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/predict.md').read_text(), re.S)
    assert len(blocks) == 4  # the last two: detectors above, tests/test_mmpretrain.py
    exec(blocks[0], names := {})
    labels = [names[name] for name in ('plain', 'reduced', 'further')]
    assert all(each.shape == (96, 128) for each in labels)
    assert (labels[0] != labels[1]).any() and (labels[1] != labels[2]).any()
    exec(blocks[1], names)
    apply_token_reduction(names['inferencer'].model, dict(type='TokenAdapter', ratio=0.3))
    assert np.array_equal(names['sample'].pred_sem_seg.data[0].numpy(), names['inferencer']('photo.jpg')['predictions'])
    for path in ('predictions/vis/photo.jpg', 'prediction.jpg'):
        assert cv2.imread(path).shape == (96, 128, 3)
