"""mmcv without its compiled operators, as mmcv-lite is."""

import os
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
from mmengine.config import Config

from mmtr import UserError, operators
from mmtr.config.files import load_config
from mmtr.inference.model import build_model

ROOT = Path(__file__).parents[1]
REMEDY = r'run `make install`, or install the full mmcv in its place\.$'
# Prints a line for each thing that works, and the error of each that does not.
SCRIPT = """
import importlib.util
assert importlib.util.find_spec('mmcv._ext') is None
import mmtr, torch
from mmcv.ops import nms
from mmengine.utils.dl_utils import mmcv_full_available
from mmtr.config.files import load_config
from mmtr.inference.model import build_model
print(mmcv_full_available())
with torch.no_grad():
    for name, key in (('segmenter_vit_tadapter_demo', 'tensor'), ('maskdino_swin-t_nuclei', 'tensor')):
        model = build_model(load_config(f'configs/{name}.py'))
        print(name, len(model(torch.zeros(1, 3, 64, 64), [], mode=key)) > 0)
try:
    nms(torch.rand(3, 4), torch.rand(3), 0.5)
except mmtr.UserError as error:
    print(error)
"""


@pytest.fixture
def lite(tmp_path):
    """Folder with an mmcv that is the installed one without its compiled module."""
    (tmp_path / 'mmcv').mkdir()
    for each in Path(mmcv.__file__).parent.iterdir():
        if not each.name.startswith('_ext'):
            (tmp_path / 'mmcv' / each.name).symlink_to(each)
    return tmp_path


@pytest.mark.slow
def test_what_needs_no_operator_runs_without_them(lite):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', SCRIPT],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(lite), str(ROOT)])},
    )
    assert done.returncode == 0, done.stderr
    full, demo, maskdino, error = [line for line in done.stdout.splitlines() if ' - mmengine - ' not in line][-4:]
    assert (full, demo, maskdino) == ('False', 'segmenter_vit_tadapter_demo True', 'maskdino_swin-t_nuclei True')
    assert error.startswith("The operator 'nms' of mmcv is needed, but mmcv is installed without")


@pytest.mark.parametrize(
    'name, needed',
    [
        ('cascade-mask-rcnn_eva02-t_nuclei.py', 'NMS, RoIAlign'),
        ('maskdino_swin-t_nuclei.py', None),
        ('segmenter_vit_demo.py', None),
    ],
)
def test_a_model_that_needs_operators_is_refused_when_it_is_built(name, needed, monkeypatch):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    monkeypatch.setattr(operators, 'compiled', lambda: True)
    build_model(cfg)
    monkeypatch.setattr(operators, 'compiled', lambda: False)
    if needed is None:
        build_model(cfg)
        return
    with pytest.raises(UserError, match=f'^The model needs {needed}, but mmcv .* {REMEDY}'):
        build_model(cfg)


def test_a_one_stage_detector_needs_nms_and_says_so(monkeypatch):
    cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    monkeypatch.setattr(operators, 'compiled', lambda: False)
    with pytest.raises(UserError, match='^The model needs NMS, but'):
        build_model(Config(dict(default_scope='mmdet', model=cfg.model)))


def test_compiled_operators_stay_in_their_place(monkeypatch):
    if not operators.compiled():
        pytest.skip('mmcv has no compiled operators here')
    compiled = sys.modules['mmcv._ext']
    operators.stand_in()
    assert sys.modules['mmcv._ext'] is compiled
