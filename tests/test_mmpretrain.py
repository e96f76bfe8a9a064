"""mmpretrain's inferencer with the key and with apply_token_reduction, in a process of its own: see requirements."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.models.backbones import VisionTransformer

from mmtr import apply_token_reduction

ROOT = Path(__file__).parents[1]
PACKAGES = Path(sys.prefix) / 'mmpretrain'
REDUCTION = dict(type='TokenAdapter', restore='copy', ratio=0.25, layers=(1, 2))
VIT = dict(img_size=(64, 64), patch_size=16, embed_dims=32, num_layers=2, num_heads=2, mlp_ratio=2, final_norm=True)
RUN = """
import pickle, sys
from tests import torchvision_stand_in
torchvision_stand_in.install()
sys.path.append(sys.argv[1])
names = {}
exec(sys.argv[2], names)
mmtr, mmpretrain = names['mmtr'], sys.modules['mmpretrain']
reduction = names['inferencer'].config.model.backbone.token_reduction
scores = dict(key=names['reduced']['pred_scores'], none=names['plain']['pred_scores'])
model = mmpretrain.init_model('stock.py', 'classifier.pth')
for name, each in dict(stock=None, applied=reduction).items():
    mmtr.apply_token_reduction(model, each)
    scores[name] = mmpretrain.ImageClassificationInferencer(model)('photo.jpg')[0]['pred_scores']
try:
    mmtr.apply_token_reduction(mmpretrain.models.VisionTransformer('deit-tiny'), reduction)
except mmtr.UserError as error:
    refused = str(error)
pickle.dump((scores, refused), open('found.pkl', 'wb'))
"""


@pytest.mark.skipif(not PACKAGES.is_dir(), reason=f'mmpretrain is not in {PACKAGES}, where `make test` puts it')
@pytest.mark.slow
def test_a_classifier(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'photo.jpg'), pixels)
    torch.manual_seed(1)
    backbone, linear = VisionTransformer(**VIT), torch.nn.Linear(32, 5)
    backbone.eval()
    torch.nn.init.normal_(backbone.pos_embed)
    torch.save(
        dict(
            meta=dict(dataset_meta=dict(classes=tuple('abcde'))),
            state_dict={
                **{f'backbone.{name}': value for name, value in backbone.state_dict().items()},
                'head.fc.weight': linear.weight,
                'head.fc.bias': linear.bias,
            },
        ),
        tmp_path / 'classifier.pth',
    )

    def scores(reduction):
        image = cv2.imread(str(tmp_path / 'photo.jpg'))[..., ::-1].astype(np.float32)
        inputs = (torch.from_numpy(image).permute(2, 0, 1)[None] - 127.5) / 64
        with torch.no_grad():
            maps = apply_token_reduction(backbone, reduction)(inputs)[-1]
            return linear(maps.mean((2, 3))).softmax(1)[0].numpy()

    def save(name, **kind):
        Config(
            dict(
                model=dict(
                    type='ImageClassifier',
                    backbone=dict(**VIT, **kind),
                    neck=dict(type='GlobalAveragePooling'),
                    head=dict(type='LinearClsHead', num_classes=5, in_channels=32),
                    data_preprocessor=dict(mean=[127.5] * 3, std=[64.0] * 3, to_rgb=True),
                ),
                test_dataloader=dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])),
            )
        ).dump(tmp_path / f'{name}.py')

    save('stock', type='mmseg.VisionTransformer')
    save('classifier', type='mmtr.VisionTransformer', token_reduction=REDUCTION)
    (lines,) = re.findall(r'```python\n([^`]*mmpretrain[^`]*)```', (ROOT / 'docs/predict.md').read_text())
    ran = subprocess.run(
        [sys.executable, '-c', RUN, PACKAGES, lines],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found, refused = pickle.loads((tmp_path / 'found.pkl').read_bytes())

    plain, reduced = scores(None), scores(REDUCTION)
    assert np.abs(plain - reduced).max() > 1e-3
    for name, expected in dict(key=reduced, none=plain, stock=plain, applied=reduced).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6, err_msg=name)
    assert refused.startswith('Tokens cannot be reduced in a VisionTransformer of mmpretrain: use a model with')
