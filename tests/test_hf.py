"""DINOv3 and EoMT against transformers, which computes in an environment of its own: random weights, no download."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mmtr.converters import dinov3, eomt
from mmtr.models.backbones import DINOv3
from mmtr.models.backbones.common.layer import run_layer
from mmtr.registry import MODELS

#: Where the Makefile puts transformers.
FOLDER = Path(sys.prefix) / 'hf'
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER / 'transformers').is_dir(),
        reason=f'transformers is not in {FOLDER}: pip install --target {FOLDER} -r requirements/hf.txt',
    ),
]


@pytest.fixture(scope='module')
def references(tmp_path_factory):
    """Function that loads what ``with_hf/reference.py`` wrote."""
    folder = tmp_path_factory.mktemp('hf')
    script = Path(__file__).parent / 'with_hf/reference.py'
    env = {**os.environ, 'PYTHONPATH': str(FOLDER), 'OMP_NUM_THREADS': '1'}
    ran = subprocess.run([sys.executable, script, folder], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-5000:]
    return lambda name: torch.load(folder / f'{name}.pth')


def close(found, expected, atol=1e-4):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def settings_of(notes, part):
    return {name[len(part) :]: value for name, value in notes.settings.items() if name.startswith(part)}


@pytest.mark.parametrize('gated', [False, True])
def test_dinov3_gives_the_features_of_transformers(references, gated):
    found = references(f'dinov3-{gated}')
    weights, notes = dinov3.convert(found['state'])
    model = DINOv3(**settings_of(notes, 'backbone.')).eval()
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        (out,) = model(found['x'])
        close(out, found['tokens'][:, 5:].transpose(1, 2).unflatten(2, (6, 10)), 1e-5)

        # Tokens of each image that stay behind layer 0.
        kept, tokens = found['kept'], model.double()._embed(found['x'].double())
        for i, layer in enumerate(model.layers):
            if i == 1:
                x = torch.cat([tokens.prefix, tokens.patches.take_along_dim(kept.unsqueeze(2), 1)], 1)
                tokens = tokens.replace(x=x, index=kept)
            tokens = run_layer(layer, tokens, model.token_reducer, i)
        close(model.norm(tokens.x), found['pruned'], 1e-5)


@pytest.mark.parametrize('kind', ['DINOv2', 'DINOv3'])
def test_eomt_predicts_and_loses_as_transformers(references, kind, monkeypatch):
    found = references(f'eomt_{kind.lower()}')
    weights, notes = eomt.convert(found['state'])
    model = MODELS.build(
        ConfigDict(
            type='mmtr.EoMT',
            backbone=dict(type=f'mmtr.{kind}', **settings_of(notes, 'backbone.')),
            panoptic_head=dict(type='mmtr.EoMTHead', num_points=200, **settings_of(notes, 'panoptic_head.')),
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        )
    )
    model.load_state_dict(weights, strict=True)
    head = model.panoptic_head
    for prob, expected in found['predictions'].items():
        head.mask_probs.fill_(prob)
        model.train(prob > 0)  # ours has no masks in inference
        with torch.no_grad():
            classes, masks = head(model.extract_feat(found['x']))
        assert len(masks) == (3 if prob else 1)
        close((classes[-1], masks[-1]), expected)

    def fixed(*shape, **kwargs):
        shape = shape if isinstance(shape[0], int) else shape[0]
        return torch.empty(shape).uniform_(generator=torch.Generator().manual_seed(sum(shape)))

    monkeypatch.setattr(torch, 'rand', fixed)
    classes, masks = found['predictions'][0.0]
    targets = [InstanceData(labels=a, masks=b.bool()) for a, b in zip(found['labels'], found['masks'])]
    losses = head.loss_by_feat([classes], [masks], targets, [{}, {}])
    names = dict(loss_cls='loss_cross_entropy', loss_mask='loss_mask', loss_dice='loss_dice')
    for own, theirs in names.items():
        assert losses[own].item() == pytest.approx(found['losses'][theirs], abs=1e-4)
