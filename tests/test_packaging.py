"""The wheel, built from the source distribution and used in another folder, beside the installed stack."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import _get_cfg_metainfo

from tests.conftest import CLASSES, segmenter_cfg

ROOT = Path(__file__).parents[1]
BASE = 'segmenter_vit_tadapter_demo.py'
PIP = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check', '--no-cache-dir']
# What is of no use to a build and may be large.
AWAY = shutil.ignore_patterns(
    '.*', '__pycache__', '*.egg-info', 'build', 'dist', 'data', 'demo', 'tests', 'work_dirs', 'checkpoints'
)


def run(*command, cwd, **env):
    """What a command prints, in a folder, with nothing of this checkout on the path; fails with what it said."""
    env = {**{name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}, **env}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder):
    """Paths of all files, relative to a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file() and path.suffix != '.pyc'}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, made from the source distribution of a copy of this checkout that has one config and tool more."""
    folder = tmp_path_factory.mktemp('package')
    shutil.copytree(ROOT, folder / 'checkout', ignore=AWAY)
    (folder / 'checkout/configs/new.py').write_text(f"_base_ = './{BASE}'\n")
    (folder / 'checkout/tools/new.py').touch()
    before = files(folder / 'checkout')
    run(sys.executable, 'setup.py', '--quiet', 'sdist', '--dist-dir', folder, cwd=folder / 'checkout')
    assert {name for name in files(folder / 'checkout') if not name.startswith('mmtr.egg-info')} == before
    source = next(folder.glob('*.tar.gz'))
    with tarfile.open(source) as archive:
        archive.extractall(folder)
    unpacked = folder / source.name.removesuffix('.tar.gz')
    # An earlier build of another state of the source: pip leaves its folder.
    (unpacked / 'build/lib/mmtr/.mim/configs').mkdir(parents=True)
    (unpacked / 'build/lib/mmtr/.mim/configs/gone.py').touch()
    run(*PIP, 'wheel', '--no-index', '--no-build-isolation', '--no-deps', '-w', folder, '.', cwd=unpacked)
    return next(folder.glob('*.whl'))


@pytest.mark.slow
def test_the_wheel_holds_what_is_in_configs_and_tools(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    mim = tmp_path / 'mmtr/.mim'
    assert files(mim / 'configs') == files(ROOT / 'configs') | {'new.py', 'metafile.yml'}
    assert files(mim / 'tools') == files(ROOT / 'tools') | {'new.py'}
    assert modes['mmtr/.mim/tools/dist_train.sh'] & 0o111
    assert files(tmp_path / 'mmtr') - {f'.mim/{name}' for name in files(mim)} == files(ROOT / 'mmtr')
    assert (tmp_path / 'mmtr/py.typed').exists()
    assert list(tmp_path.glob('*.dist-info/**/LICENSE'))
    for config in (mim / 'configs').glob('*.py'):  # as mmengine.hub and mim read the index
        assert (mim / _get_cfg_metainfo(tmp_path / 'mmtr', config.name)['Config']).samefile(config)


@pytest.mark.slow
def test_the_installed_wheel_works_in_another_folder(wheel, tmp_path):
    run(*PIP, 'install', '--no-index', '--no-deps', '--no-compile', '--target', tmp_path / 'site', wheel, cwd=tmp_path)
    (tmp_path / 'mine.py').write_text(f"_base_ = 'mmtr::{BASE}'\nmodel = dict(backbone=dict(num_layers=3))\n")
    (tmp_path / 'use.py').write_text("""
import json, runpy, sys
import mmtr
from mmengine.config import Config
from mmtr.config.files import load_config
print(json.dumps([mmtr.__file__, load_config('mmtr::new.py').filename, Config.fromfile('mine.py').to_dict()]))
for sys.argv in ['mmtr'], ['mmtr', 'benchmark', '--help']:
    runpy.run_module('mmtr', run_name='__main__')
""")
    said = run(sys.executable, '-W', 'ignore', 'use.py', cwd=tmp_path, PYTHONPATH=str(tmp_path / 'site'))
    (module, new, mine), *said = json.loads(said.splitlines()[0]), *said.splitlines()[1:]
    site = (tmp_path / 'site/mmtr').resolve()
    assert Path(module).resolve().parent == site and Path(new).resolve() == site / '.mim/configs/new.py'
    expected = Config.fromfile(ROOT / 'configs' / BASE)
    expected.merge_from_dict({'model.backbone.num_layers': 3})
    assert mine == json.loads(json.dumps(expected.to_dict()))
    assert [line for line in said if line.startswith('Tools: analyze_tokens, benchmark, ') and ' new, ' in line]
    assert [line for line in said if line.startswith('usage: benchmark.py ')]


@pytest.mark.slow
def test_an_environment_with_the_wheel_trains_and_tests(wheel, drawn_data, tmp_path):
    run(sys.executable, '-m', 'venv', tmp_path / 'env', cwd=tmp_path)
    python = tmp_path / 'env/bin/python'
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=tmp_path).strip())
    # The stack alone: a .pth file within a folder that a .pth file names, as an editable install has, is not read.
    (site / 'stack.pth').write_text('\n'.join(path for path in sys.path if path.endswith('site-packages')))
    run(python, *PIP[1:], 'install', '--no-index', '--no-deps', wheel, cwd=tmp_path)
    cfg = segmenter_cfg(drawn_data, tmp_path / 'work')
    cfg.pop('model')
    cfg.dump(str(tmp_path / 'stripes.py'))
    small = dict(embed_dims=32, num_layers=2, num_heads=2)
    (tmp_path / 'mine.py').write_text(f"""
_base_ = ['mmtr::_base_/models/segmenter_vit-t.py', 'stripes.py']
custom_imports = dict(imports=['mmtr'])
model = dict(
    pretrained=None, data_preprocessor=dict(size=(64, 64)),
    backbone=dict(img_size=(64, 64), token_reduction=dict(type='TokenAdapter'), **{small}),
    decode_head=dict(in_channels=32, channels=32, num_classes={len(CLASSES)}, **{small}),
    test_cfg=dict(_delete_=True, mode='whole'))
""")
    tools = site / 'mmtr/.mim/tools'
    run(python, '-m', 'mmtr', 'train', 'mine.py', cwd=tmp_path)
    for command in (
        (python, tools / 'test.py', 'mine.py', 'work/iter_4.pth'),
        (tools / 'dist_test.sh', 'mine.py', 'work/iter_4.pth', '2'),
    ):
        assert 'mIoU' in run(*command, cwd=tmp_path, PYTHON=str(python), OMP_NUM_THREADS='1')
    # mim starts several processes with torch.distributed.launch.
    run(
        python,
        '-m',
        'torch.distributed.launch',
        '--nproc_per_node=2',
        '--master_port=29517',
        tools / 'train.py',
        'mine.py',
        '--launcher',
        'pytorch',
        cwd=tmp_path,
        OMP_NUM_THREADS='1',
    )
