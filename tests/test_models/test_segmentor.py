"""Labels and logits of ``mmtr.EncoderDecoder`` are those of mmseg's, bit by bit."""

import copy
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models import SegTTAModel
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder as Stock
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from mmtr.inference.model import build_model, load_weights
from mmtr.models.segmentors import EncoderDecoder
from mmtr.models.segmentors.deferred import DeferredPixelData
from tests.conftest import draw_scenes

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared'


@MODELS.register_module()
class Pixels(nn.Module):
    """A backbone that gives the image."""

    def forward(self, inputs):
        return (inputs,)


@MODELS.register_module()
class Says(BaseDecodeHead):
    """A head whose logits are a function, ``say``, of the image."""

    def __init__(self, **kwargs):
        super().__init__(in_channels=3, channels=3, loss_decode=dict(type='CrossEntropyLoss'), **kwargs)

    def forward(self, inputs):
        return self.say(inputs[0])


def both(say, num_classes=5, align_corners=False, test_cfg=None, **head):
    """mmseg's segmentor and ours, whose head gives ``say(image)``."""
    models = []
    for kind in (Stock, EncoderDecoder):
        model = kind(
            backbone=dict(type='Pixels'),
            decode_head=dict(type='Says', num_classes=num_classes, align_corners=align_corners, **head),
            test_cfg=ConfigDict(test_cfg or dict(mode='whole')),
        ).eval()
        model.decode_head.say = say
        models.append(model)
    return models


def samples(count, shape, ori_shape=None, **meta):
    meta = dict(img_shape=shape, pad_shape=shape, ori_shape=ori_shape or shape, img_path='', **meta)
    return [SegDataSample(metainfo=meta) for _ in range(count)]


def bits(x):
    """Of floating point numbers, so that 0 and -0 differ and NaN does not differ from itself."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def check(models, inputs, given=None, deferred=True):
    """Both predict the same labels, and the same logits once they are read."""
    with torch.no_grad():
        stock, ours = (model.predict(inputs, copy.deepcopy(given)) for model in models)
    assert len(ours) == len(stock) == len(inputs)
    for one, other in zip(stock, ours):
        assert isinstance(other.seg_logits, DeferredPixelData) == deferred
        assert other.pred_sem_seg.data.dtype == one.pred_sem_seg.data.dtype
        assert torch.equal(other.pred_sem_seg.data, one.pred_sem_seg.data)
        if one.seg_logits.data.isfinite().all():
            assert torch.equal(bits(other.seg_logits.data), bits(one.seg_logits.data))
        else:
            torch.testing.assert_close(other.seg_logits.data, one.seg_logits.data, rtol=0, atol=0, equal_nan=True)
    return ours


def logits_of(kind, shape, seed):
    """Random logits, and such as are hard: equal ones, ones an ulp apart, none that is the largest."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == 'ties':
        return (2 * x).round() / 2
    if kind == 'ulps':
        return 1 + (x * 2).round() * 2**-23
    if kind == 'constant':
        return torch.full(shape, -0.0)
    if kind == 'one ulp above':  # equal in some pixels, once means are rounded
        x[:, 0], x[:, 1:] = 1.1800972, 1.1800973
    if kind.startswith('second everywhere'):  # but for means of pixels that have different firsts
        axis, span = {'rows': (2, 3), 'columns': (3, 2)}[kind.split()[-1]]
        along = torch.arange(shape[axis]).view([-1, 1] if axis == 2 else [1, -1])
        for k in range(min(span + 2, shape[1])):
            x[:, k] = torch.where((along - k) % (span + 2) < span, 1.0, -10.0)
        x[:, span + 2 :] = 0.9
    if kind == 'smooth':  # as of a trained model: few classes can win
        x = nn.functional.interpolate(3 * x[:, :, :3, :3], shape[2:], mode='bicubic')
    return x


KINDS = (
    'random',
    'ties',
    'ulps',
    'constant',
    'one ulp above',
    'second everywhere, rows',
    'second everywhere, columns',
    'smooth',
)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('align_corners', (False, True))
def test_labels_and_logits_are_stocks(kind, align_corners):
    # (low) -> size of the input, size of the original: as it is, enlarged, made smaller, both ways, odd ones
    sizes = [
        ((5, 7), (80, 112), (80, 112)),
        ((5, 7), (77, 109), (131, 203)),
        ((6, 6), (96, 97), (70, 61)),
        ((90, 40), (70, 61), (150, 200)),
        ((70, 64), (70, 64), (70, 64)),
        ((3, 1), (140, 1), (140, 2)),
    ]
    for seed, (low, size, original) in enumerate(sizes):
        for classes in (2, 5, 21, 150):
            logits = logits_of(kind, (2, classes, *low), seed)
            models = both(lambda x, logits=logits: logits, classes, align_corners)
            check(models, torch.rand(2, 3, *size), samples(2, size, original))


@pytest.mark.parametrize(
    'meta',
    [
        dict(flip=True, flip_direction='horizontal'),
        dict(flip=True, flip_direction='vertical'),
        dict(padding_size=[3, 5, 0, 7]),
        dict(img_padding_size=[0, 12, 0, 20], padding_size=[9, 9, 9, 9]),
    ],
)
@pytest.mark.parametrize('original', ((80, 112), (70, 61)))
def test_padding_and_flips_are_undone_as_stock(meta, original):
    models = both(lambda x: logits_of('ties', (1, 5, 5, 7), 0))
    check(models, torch.rand(1, 3, 80, 112), samples(1, (80, 112), original, **meta))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('image', ((64, 96), (96, 160), (50, 130)))
def test_sliding_windows_are_summed_up_as_stock(kind, image):
    def say(x):
        spread = nn.functional.adaptive_avg_pool2d(x, 4).sum((1, 2, 3))
        return logits_of(kind, (len(x), 7, 5, 6), int(1e4 * spread[0]) % 1000)

    models = both(say, 7, test_cfg=dict(mode='slide', crop_size=(64, 96), stride=(40, 50)))
    check(models, torch.rand(2, 3, *image), samples(2, image, (110, 170)))
    check(models, torch.rand(1, 3, *image))


@pytest.mark.parametrize('value', (float('nan'), float('inf'), float('-inf'), 3e38))
@pytest.mark.parametrize('original', ((80, 112), (90, 100)))
def test_what_is_not_finite_or_nearly_so_is_as_stock(value, original):
    logits = logits_of('ties', (1, 5, 5, 7), 0)
    logits[0, 2, 1:3, 2], logits[0, 3, 2, 2] = value, value
    check(both(lambda x: logits), torch.rand(1, 3, 80, 112), samples(1, (80, 112), original))


@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16, torch.float64))
@pytest.mark.parametrize('kind', KINDS)
def test_other_dtypes(dtype, kind):
    models = both(lambda x: logits_of(kind, (len(x), 5, 5, 7), 0).to(dtype))
    check(models, torch.rand(1, 3, 80, 112), samples(1, (80, 112), (75, 90)))
    slide = both(models[0].decode_head.say, test_cfg=dict(mode='slide', crop_size=(60, 90), stride=(40, 50)))
    for inputs in (torch.rand(1, 3, 80, 112), torch.rand(1, 3, 60, 90), torch.rand(1, 3, 60, 90).to(dtype)):
        check(slide, inputs)


def test_autocast_gives_the_logits_that_it_gives_stock_also_when_they_are_read_later():
    models = both(lambda x: logits_of('random', (1, 5, 5, 7), 0).bfloat16())
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        stock, ours = (model.predict(torch.rand(1, 3, 80, 112), samples(1, (80, 112), (75, 90)))[0] for model in models)
        assert torch.equal(ours.pred_sem_seg.data, stock.pred_sem_seg.data)
    assert ours.seg_logits.data.dtype == stock.seg_logits.data.dtype
    assert torch.equal(ours.seg_logits.data, stock.seg_logits.data)


@pytest.mark.parametrize('threads', (1, 2, 5))
def test_any_number_of_threads(threads):
    torch.set_num_threads(threads)
    try:
        check(
            both(lambda x: logits_of('ulps', (1, 21, 23, 31), 0), 21),
            torch.rand(1, 3, 365, 491),
            samples(1, (365, 491)),
        )
    finally:
        torch.set_num_threads(1)


def test_what_is_small_or_channels_last_is_resized_at_once():
    # torch has other kernels for these, whose last bits depend on how many channels there are.
    check(both(lambda x: logits_of('ulps', (2, 5, 5, 7), 0)), torch.rand(2, 3, 40, 48), samples(2, (40, 48)), False)
    check(
        both(lambda x: logits_of('ulps', (2, 5, 5, 7), 0)),
        torch.rand(2, 3, 80, 112),
        samples(2, (80, 112), (40, 48)),
        False,
    )
    check(
        both(lambda x: logits_of('ulps', (2, 5, 5, 7), 0).contiguous(memory_format=torch.channels_last)),
        torch.rand(2, 3, 80, 112),
        samples(2, (80, 112)),
        False,
    )


def test_one_channel_and_a_threshold():
    models = both(lambda x: logits_of('random', (1, 1, 5, 7), 0), 2, out_channels=1, threshold=0.4)
    check(models, torch.rand(1, 3, 80, 112), samples(1, (80, 112)), False)


def test_without_samples_and_with_images_of_different_sizes():
    models = both(lambda x: logits_of('random', (len(x), 5, 5, 7), 0))
    check(models, torch.rand(2, 3, 80, 112))
    given = samples(1, (80, 112), (90, 120)) + samples(1, (80, 112), (100, 130))
    check(models, torch.rand(2, 3, 80, 112), given, False)


def test_what_a_subclass_or_a_head_does_in_its_own_is_done():
    class Doubled(EncoderDecoder):
        def encode_decode(self, inputs, batch_img_metas):
            return -super().encode_decode(inputs, batch_img_metas)

    def say(x):
        return logits_of('random', (1, 5, 5, 7), 0)

    plain, ours = both(say)
    ours.__class__ = Doubled
    with torch.no_grad():
        given = samples(1, (80, 112))
        turned = ours.predict(torch.rand(1, 3, 80, 112), copy.deepcopy(given))[0]
        kept = plain.predict(torch.rand(1, 3, 80, 112), copy.deepcopy(given))[0]
    assert torch.equal(turned.seg_logits.data, -kept.seg_logits.data)
    models = both(say)
    for model in models:
        predict = model.decode_head.predict
        model.decode_head.predict = lambda *args, predict=predict: -predict(*args)
    check(models, torch.rand(1, 3, 80, 112), samples(1, (80, 112)), False)


def test_with_gradients_the_logits_have_them():
    weight = torch.ones(1, requires_grad=True)
    _, ours = both(lambda x: weight * logits_of('random', (1, 5, 5, 7), 0))
    ours.predict(torch.rand(1, 3, 80, 112), samples(1, (80, 112)))[0].seg_logits.data.sum().backward()
    assert weight.grad.abs().item() > 0


@pytest.fixture
def deferred():
    models = both(lambda x: logits_of('random', (1, 5, 5, 7), 0))
    with torch.inference_mode():
        stock, ours = (model.predict(torch.rand(1, 3, 80, 112), samples(1, (80, 112)))[0] for model in models)
    return stock.seg_logits, ours.seg_logits


@pytest.mark.parametrize(
    'read',
    [
        lambda data: data.data,
        lambda data: data.to('cpu').data,
        lambda data: data.cpu().data,
        lambda data: data.clone().data,
        lambda data: data.detach().data,
        lambda data: torch.from_numpy(data.numpy().data),
        lambda data: data.get('data'),
        lambda data: data.to_dict()['data'],
        lambda data: dict(data.to_dict())['data'],
        lambda data: data.pop('data'),
        lambda data: pickle.loads(pickle.dumps(data)).data,
        lambda data: pickle.loads(pickle.dumps(data.to_dict()))['data'],
        lambda data: copy.deepcopy(data).data,
        lambda data: data.new().data,
        lambda data: data[:, :].data,
        lambda data: next(iter(data.values())),
    ],
)
def test_however_they_are_read_the_logits_are_stocks(deferred, read):
    stock, ours = deferred
    assert ours.keys() == stock.keys() == ['data'] and 'data' in ours
    assert '_compute' not in str(ours) and ours.shape == stock.shape
    assert torch.equal(read(ours), stock.data)


def test_logits_can_be_replaced_and_deleted(deferred):
    _, ours = deferred
    ours.data = torch.zeros(5, 80, 112)
    assert not ours.data.any()
    del ours.data
    assert 'data' not in ours and not hasattr(ours, 'data')
    assert not hasattr(DeferredPixelData(), 'data')


def test_metrics_of_labels_read_no_logits(deferred):
    def never():
        raise AssertionError('the logits were read')

    sample = samples(1, (80, 112))[0]
    labels = torch.zeros(1, 80, 112, dtype=torch.int64)
    sample.set_data(
        dict(
            pred_sem_seg=PixelData(data=labels), gt_sem_seg=PixelData(data=labels), seg_logits=DeferredPixelData(never)
        )
    )
    init_default_scope('mmseg')
    evaluator = Evaluator(dict(type='IoUMetric'))
    evaluator.dataset_meta = dict(classes=list('abcde'))
    evaluator.process([sample])
    assert evaluator.evaluate(1)['aAcc'] == 100
    with pytest.raises(AssertionError, match='were read'):
        sample.seg_logits.to_dict()['data']


def test_test_time_augmentation_merges_as_stock():
    merged = []
    for model in both(lambda x: logits_of('random', (1, 5, 5, 7), int(x.sum()))):
        tta = SegTTAModel(module=model)
        views = [
            model.predict(image, samples(1, (80, 112), **flip))
            for image, flip in (
                (torch.full((1, 3, 80, 112), 0.1), {}),
                (torch.full((1, 3, 80, 112), 0.2), dict(flip=True, flip_direction='horizontal')),
            )
        ]
        merged.append(tta.merge_preds([list(each) for each in zip(*views)])[0].pred_sem_seg.data)
    assert torch.equal(*merged)


def differing(config, checkpoint, data_root):
    """Images, and how many of their labels are not those of mmseg's ``predict`` with the same weights."""
    cfg = Config.fromfile(ROOT / 'configs' / config)
    model = build_model(cfg).eval()
    load_weights(model, checkpoint)
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.test_dataloader.dataset.update(data_root=str(data_root), indices=100)
    init_default_scope('mmseg')
    loader, count = Runner.build_dataloader(cfg.test_dataloader), 0
    with torch.inference_mode():
        for batch in loader:
            data = model.data_preprocessor(copy.deepcopy(batch))
            ours, stock = (
                predict(data['inputs'], copy.deepcopy(data['data_samples']))[0]
                for predict in (model.predict, partial(Stock.predict, model))
            )
            assert isinstance(ours.seg_logits, DeferredPixelData)
            count += int((ours.pred_sem_seg.data != stock.pred_sem_seg.data).sum())
    return len(loader), count


@pytest.mark.slow
def test_no_label_of_100_drawn_scenes_differs(tmp_path):
    checkpoint = ROOT / 'demo/segmenter_vit_demo.pth'
    assert differing('segmenter_vit_demo.py', checkpoint, draw_scenes(tmp_path, 100)) == (100, 0)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason='../shared is not there')
def test_no_label_of_100_camvid_images_differs():
    checkpoint = SHARED / 'checkpoints/segmenter_vit-t_camvid.pth'
    assert differing('segmenter_vit-t_camvid.py', checkpoint, SHARED / 'data/camvid') == (100, 0)
