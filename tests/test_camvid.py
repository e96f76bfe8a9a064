"""A model that stock mmsegmentation trained, on real images; skipped where ../shared is not there."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmtr import apply_token_reduction
from mmtr.inference.model import build_model, load_weights

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / 'shared'
CHECKPOINT = SHARED / 'checkpoints/segmenter_vit-t_camvid.pth'
pytestmark = pytest.mark.skipif(not CHECKPOINT.exists(), reason='../shared is not there')


@pytest.fixture(scope='module')
def ours():
    cfg = Config.fromfile(ROOT / 'configs/segmenter_vit-t_camvid.py')
    model = build_model(cfg)
    load_weights(model, CHECKPOINT)
    return model


@pytest.fixture(scope='module')
def batches():
    cfg = Config.fromfile(ROOT / 'configs/segmenter_vit-t_camvid.py').test_dataloader
    cfg.update(num_workers=0, persistent_workers=False)
    cfg.dataset.update(data_root=str(SHARED / 'data/camvid'), indices=[0, 40, 80])
    init_default_scope('mmseg')
    return list(Runner.build_dataloader(cfg))


def labels(model, batches):
    with torch.inference_mode():
        return torch.cat([model.test_step(batch)[0].pred_sem_seg.data for batch in batches])


def test_stock_checkpoint_gives_the_stock_predictions(ours, batches):
    stock = build_model(Config.fromfile(CHECKPOINT.with_suffix('.py')))
    load_weights(stock, CHECKPOINT)
    assert type(stock.backbone) is not type(ours.backbone)
    x = stock.data_preprocessor(batches[0])['inputs']
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), stock(x), atol=1e-3, rtol=1e-3)
    assert (labels(ours, batches) == labels(stock, batches)).float().mean() > 0.9999


@pytest.mark.slow
def test_reduction_without_training_keeps_most_of_the_predictions(ours, batches):
    truth = torch.cat([batch['data_samples'][0].gt_sem_seg.data for batch in batches])
    known = truth != 255
    plain = labels(ours, batches)
    try:
        reduced = labels(apply_token_reduction(ours, dict(type='TokenAdapter', ratio=0.3)), batches)
    finally:
        apply_token_reduction(ours, None)
    accuracy = [(out == truth)[known].float().mean().item() for out in (plain, reduced)]
    assert 0.85 < (plain == reduced).float().mean() < 1
    assert accuracy[0] > 0.7 and accuracy[1] > accuracy[0] - 0.03
