"""mmtr with mmpretrain, which is no part of the environment, in processes of their own that have it."""

import os
import pickle
import re
import subprocess
import sys
from importlib.util import find_spec
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
names = {}
exec(sys.argv[1], names)
mmtr, mmpretrain = names['mmtr'], sys.modules['mmpretrain']
reduction = names['inferencer'].config.model.backbone.token_reduction
scores = dict(key=names['reduced']['pred_scores'], none=names['plain']['pred_scores'])
model = mmpretrain.init_model('stock.py', 'classifier.pth')
for name, each in dict(stock=None, applied=reduction).items():
    mmtr.apply_token_reduction(model, each)
    scores[name] = mmpretrain.ImageClassificationInferencer(model)('photo.jpg')[0]['pred_scores']
pickle.dump(scores, open('found.pkl', 'wb'))
"""
#: Hosts of mmpretrain in the tests that all hosts share.
HOSTS = 'cls_vit or beitvit or viteva02 or vitsam or swintransformerv2'
#: Why these skip a method, which they refuse.
NOT_FOR = ('its bias needs the positions of queries and keys', 'has no class token')
LONG = (
    'test_backbones',
    'test_compiled',
    'test_configs',
    'test_converted',
    'test_data',
    'test_metrics',
    'test_outputs',
    'test_page',
    'test_positions',
    'test_sam',
    'test_swin_v2',
    'test_tools',
)
pytestmark = pytest.mark.skipif(
    not PACKAGES.is_dir() and find_spec('mmpretrain') is None,
    reason=f'mmpretrain is not in {PACKAGES}, where `make test` puts it',
)


def run(*command, cwd=ROOT):
    """The output of Python with ``command``, which finds mmpretrain."""
    ran = subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, command)],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', ''), str(PACKAGES)])},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-3000:]
    return ran.stdout


@pytest.mark.parametrize(
    'tests',
    [
        pytest.param([path.relative_to(ROOT)], id=path.stem, marks=[pytest.mark.slow] * (path.stem in LONG))
        for path in sorted((ROOT / 'tests/with_mmpretrain').glob('test_*.py'))
    ]
    + [
        pytest.param(
            ['tests/test_models/test_attention_contract.py', '-k', HOSTS],
            id='attention contract',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [*sorted((ROOT / 'tests/test_reducers').glob('test_contract*.py')), '-k', HOSTS, '-m', 'not slow'],
            id='contract',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_in_an_environment_with_mmpretrain(tests):
    out = run('-m', 'pytest', '-p', 'no:cacheprovider', '-rA', *tests)
    assert re.search('(?m)^PASSED', out)
    assert all(line.endswith(NOT_FOR) for line in re.findall('(?m)^SKIPPED.*', out))


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
    run('-c', RUN, lines, cwd=tmp_path)
    found = pickle.loads((tmp_path / 'found.pkl').read_bytes())

    plain, reduced = scores(None), scores(REDUCTION)
    assert np.abs(plain - reduced).max() > 1e-3
    for name, expected in dict(key=reduced, none=plain, stock=plain, applied=reduced).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6, err_msg=name)
