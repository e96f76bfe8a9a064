"""mmpretrain absent, present, and present with a torchvision that cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmtr import UserError
from mmtr.checks.config import check_config
from mmtr.models import backbones
from mmtr.registry import MODELS, ON_MMPRETRAIN

ROOT = Path(__file__).parents[1]
MINOR = int(str(torch.__version__).split('.')[1])
REMEDY = f"run `pip install mmtr[cls]` and, for this torch, `pip install --no-deps 'torchvision==0.{MINOR + 15}.*'`."
# What PyPI's torchvision does beside a torch for CPUs: its operators are looked up, and none was loaded.
NO_LIBRARY = """
import torch
register = getattr(torch.library, 'register_fake', None) or torch.library.impl_abstract
for name in ('nms', 'qnms'):
    register(f'torchvision::{name}')(lambda dets, scores, iou_threshold: dets)
"""
OTHER_CUDA = 'raise RuntimeError("compiled with different CUDA major versions")'
SCRIPT = """
import sys
import mmtr
from mmtr.registry import MODELS
try:
    import torchvision
    print('torchvision', torchvision.__name__)
except ImportError:
    print('no torchvision')
try:
    MODELS.build(dict(type='mmtr.ImageClassifier'))
except mmtr.UserError as error:
    print(error)
except ImportError as error:
    print('imported', error.name)
mmtr.apply_token_reduction(MODELS.build(dict(type='VisionTransformer', num_layers=2)), dict(type='ToMe'))
print('the rest works')
"""


@pytest.fixture
def without(monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmpretrain']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)


@pytest.mark.parametrize('name', ON_MMPRETRAIN)
@pytest.mark.parametrize('registry', [MODELS, MODELS.parent], ids=lambda registry: registry.scope)
def test_a_config_that_needs_mmpretrain_says_so(name, registry, without):
    kind = name if registry is MODELS else f'mmtr.{name}'
    for ask in (registry.get, lambda kind: registry.build(dict(type=kind))):
        with pytest.raises(UserError) as found:
            ask(kind)
        assert str(found.value) == f'mmtr.{name} needs mmpretrain, which is not installed: {REMEDY}'


def test_a_config_of_its_stock_classes_says_so(without):
    with pytest.raises(UserError, match="^default_scope='mmpretrain' needs mmpretrain, which is not installed: run"):
        check_config(Config(dict(default_scope='mmpretrain')), ['test_dataloader'])


def test_other_names_do_not_ask_for_it(without):
    assert MODELS.get('VisionTransformer') is backbones.VisionTransformer
    assert MODELS.parent.get('mmtr.DINOv2') is backbones.DINOv2


def imported_with(tmp_path, torchvision, mmpretrain='import torchvision'):
    """The lines of ``SCRIPT`` beside an mmpretrain and a torchvision of one line or more; None: none."""
    for name, code in dict(torchvision=torchvision, mmpretrain=mmpretrain).items():
        if code is not None:
            (tmp_path / name).mkdir()
            (tmp_path / name / '__init__.py').write_text(code if name == 'torchvision' else '')
    (tmp_path / 'mmpretrain/models').mkdir()
    (tmp_path / 'mmpretrain/models/__init__.py').write_text(mmpretrain)
    ran = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', SCRIPT],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return [line for line in ran.stdout.splitlines() if ' - mmengine - ' not in line]


@pytest.mark.slow
def test_a_torchvision_without_its_library(tmp_path):
    # Then the import goes as far as this mmpretrain does.
    lines = imported_with(tmp_path, NO_LIBRARY)
    assert lines == ['torchvision torchvision', 'imported mmpretrain.models.classifiers', 'the rest works']


@pytest.mark.slow
def test_a_torchvision_that_cannot_be_imported(tmp_path):
    first, said, last = imported_with(tmp_path, OTHER_CUDA)
    assert (first, last) == ('no torchvision', 'the rest works')
    assert said == (
        'mmtr.ImageClassifier needs mmpretrain, which cannot be imported here (torchvision: compiled with different '
        f'CUDA major versions): {REMEDY}'
    )


@pytest.mark.slow
def test_an_mmpretrain_that_lacks_something(tmp_path):
    _, said, last = imported_with(tmp_path, 'import torch', 'import what_nobody_has')
    assert last == 'the rest works'
    assert said == (
        "mmtr.ImageClassifier needs mmpretrain, which cannot be imported here (No module named 'what_nobody_has'): "
        f'{REMEDY}'
    )
