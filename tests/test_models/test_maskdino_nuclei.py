"""MaskDINO learns real instances from random weights, Swin plain and reduced; skipped where ../shared is not there."""

import json
from pathlib import Path

import numpy as np
import pytest

from .maskdino_runs import run_cfg

NUCLEI = Path(__file__).parents[3] / 'shared/data/dsb2018_nuclei'
#: 256x256 pixels each, with 3, 6, 7 and 10 nuclei.
IMAGES = ('58c593bcb98386e7.jpg', 'e5f8ad0f0a43af8c.jpg', '8b77284d6f37ab3f.jpg', '6aa7dd0c88bec4f9.jpg')
ITERATIONS = 150
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not NUCLEI.exists(), reason='../shared is not there')]


@pytest.fixture
def nuclei(tmp_path):
    """Folder with ``IMAGES`` and their annotations."""
    root = tmp_path / 'nuclei'
    root.mkdir()
    (root / 'images').symlink_to(NUCLEI / 'images/val')
    found = json.loads((NUCLEI / 'annotations/instances_val.json').read_text())
    images = {image['id']: image for image in found['images'] if image['file_name'] in IMAGES}
    found.update(
        images=list(images.values()), annotations=[each for each in found['annotations'] if each['image_id'] in images]
    )
    (root / 'instances.json').write_text(json.dumps(found))
    return root


@pytest.mark.parametrize('backbone', ['swin', 'reduced'])
def test_a_few_images_are_learned(backbone, nuclei, tmp_path, tool):
    cfg = run_cfg(nuclei, tmp_path / 'work', 'instances', ITERATIONS, backbone)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[loader].dataset.metainfo = dict(classes=('nucleus',))
    cfg.model.panoptic_head.update(num_things_classes=1, num_queries=40, initial_boxes='no')
    cfg.model.panoptic_head.loss.num_points = 1024
    cfg.dump(tmp_path / 'config.py')
    status, said = tool('train', tmp_path / 'config.py')
    assert status == 0, said
    scalars = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    *steps, tested = map(json.loads, scalars)
    losses = [step['loss'] for step in steps]
    print(
        f'{backbone}: loss {np.mean(losses[:5]):.1f} to {np.mean(losses[-5:]):.1f}, '
        f'mask AP {tested["coco/segm_mAP"]}, box AP {tested["coco/bbox_mAP"]}'
    )
    assert len(losses) == ITERATIONS and np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert tested['coco/segm_mAP'] > 0.1 and tested['coco/bbox_mAP'] > 0.05
