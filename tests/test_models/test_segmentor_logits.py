"""Logits that are computed when they are read, and labels of real images."""

import copy
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models import SegTTAModel
from mmseg.models.segmentors import EncoderDecoder as Stock

from mmtr.inference.model import build_model, load_weights
from mmtr.models.segmentors.deferred import DeferredPixelData
from tests.conftest import draw_scenes

from .segmentors import both, logits_of, samples

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared'


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
