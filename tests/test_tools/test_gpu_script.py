"""docs/results/gpu.sh: every command that it would run is one that its tool takes, and it goes on where it stopped."""

import json
import math
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmtr import UserError
from mmtr.cli.measuring import SDPA_KERNELS, only_sdpa
from mmtr.config.files import load_config
from mmtr.inference.model import build_model
from tests.documented_commands import module_of

ROOT = Path(__file__).parents[2]


def gpu(folder, **env):
    """Run the script; gives its exit status and what it printed."""
    env = {**os.environ, **{key: str(value) for key, value in env.items()}}
    done = subprocess.run([ROOT / 'docs/results/gpu.sh', str(folder)], env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def planned(folder, **env):
    """The commands that it would run, in words; and the seconds that all are estimated to take."""
    # A Python that can import anything, so that xformers is planned for.
    status, printed = gpu(folder, PLAN=1, PYTHON='true', CAMVID='data', CHECKPOINT='a.pth', **env)
    assert status == 0 and not folder.exists()
    lines = printed.splitlines()
    return [shlex.split(line) for line in lines if not line.startswith('#')], int(lines[-1].split()[3])


@pytest.fixture(scope='module')
def benchmark():
    return module_of(ROOT / 'tools/benchmark.py')


@pytest.mark.parametrize(
    'env, read',
    [({}, False), *(pytest.param(env, True, marks=pytest.mark.slow) for env in ({}, dict(TINY=1)))],
    ids=str,
)
def test_every_step_has_its_configs_and_options(tmp_path, monkeypatch, benchmark, env, read):
    commands, seconds = planned(tmp_path / 'out', **env)
    assert seconds < 1500
    monkeypatch.chdir(ROOT)
    specs = set()
    for words in commands:
        if 'experiments/benchmark_matrix.py' in words:
            runs = words[3 : words.index('--')]
            options = words[words.index('--') + 1 :]
            for run in runs:
                dtype, batch, repeats = run.split(':')
                made = ['--dtype', dtype, '--batch-size', batch, '--repeats', repeats]
                monkeypatch.setattr(sys, 'argv', ['benchmark', *options, *made])
                specs.update(benchmark.parse_args().configs)
        elif 'pytest' in words:
            assert all((ROOT / word).is_file() for word in words if word.startswith('tests/'))
        elif 'train' in words[2]:
            assert (ROOT / words[3]).is_file()
        else:
            assert words == ['bash', '-c', 'matched']
    assert any('attn_backend=xformers' in spec for spec in specs) != bool(env)
    for spec in specs:
        assert '::' in spec or Path(spec.partition('@')[0]).is_file(), spec
        if read:
            benchmark.read_config(spec, {})


def test_steps_and_estimates_are_chosen(tmp_path):
    every, seconds = planned(tmp_path / 'out')
    some, less = planned(tmp_path / 'out', ONLY='matched|.*_compiled')
    assert 1 < len(some) < len(every) and less < seconds
    trainings = [words for words in every if 'train' in words[2] and words[0] == 'bash']
    assert len(trainings) == 3


def test_one_kernel_of_attention():
    switches = {kernel: getattr(torch.backends.cuda, f'{kernel}_sdp_enabled', None) for kernel in SDPA_KERNELS}
    before = {kernel: enabled() for kernel, enabled in switches.items() if enabled}
    args = Namespace(sdpa='math', dtype='float32', device='cpu')
    try:
        only_sdpa(args)
        assert [kernel for kernel in before if switches[kernel]()] == ['math']
        args.sdpa = 'mem_efficient'  # there is none for a CPU
        with pytest.raises(UserError, match='--sdpa mem_efficient cannot be used with --dtype float32, --device cpu'):
            only_sdpa(args)
        args.sdpa = None
        only_sdpa(args)
        assert [kernel for kernel in before if switches[kernel]()] == ['mem_efficient']
    finally:
        for kernel, enabled in before.items():
            getattr(torch.backends.cuda, f'enable_{kernel}_sdp')(enabled)


def test_the_nearest_setting_is_found():
    nearest = module_of(ROOT / 'experiments/matched_settings.py').nearest
    shares = {1: 0.9, 2: 0.7, 3: 0.52, 4: 0.45, 5: -math.inf, 6: -math.inf}
    for target in (0.95, 0.6, 0.5, 0.47, 0.1):
        best = min(shares, key=lambda value: abs(shares[value] - target))
        assert nearest(list(shares), shares.__getitem__, target) == best


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind, end, high in (('img', 'jpg', 256), ('ann', 'png', 11)):
            (tmp_path / f'camvid/{kind}_dir/{split}').mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, high, (64, 96, 3) if kind == 'img' else (64, 96), np.uint8)
                cv2.imwrite(str(tmp_path / f'camvid/{kind}_dir/{split}/{i}.{end}'), pixels)
    checkpoint, out, config = tmp_path / 'a.pth', tmp_path / 'out', 'configs/segmenter_vit-t_cropr_camvid.py'
    monkeypatch.chdir(ROOT)
    matched = module_of(ROOT / 'experiments/matched_settings.py')
    chosen = [case for case in matched.METHODS if case[0] in ('GridPool', 'Cropr', 'DAR')]
    monkeypatch.setattr(matched, 'METHODS', chosen)
    plain = 'configs/segmenter_vit-t_ade20k.py'
    monkeypatch.setattr(sys, 'argv', ['matched', plain, '--shape', '96', '96', '--device', 'cpu'])
    matched.main()
    printed = capsys.readouterr().out
    (out / 'log').mkdir(parents=True)
    (out / 'log/matched.ok').touch()
    (out / 'matched.txt').write_text(printed)
    env = dict(
        **dict(TINY=1, PYTHON=sys.executable, WORK=tmp_path / 'work', SEEDS='0', TRAININGS=config, OUT=tmp_path),
        **dict(CAMVID=tmp_path / 'camvid', CHECKPOINT=checkpoint, ONLY='matched|methods.*|train.*'),
    )
    status, said = gpu(out, **env)
    assert status == 1 and 'Failed: train_segmenter_vit-t_cropr_camvid' in said, said
    assert 'a.pth' in (out / 'failed.txt').read_text()
    results = out / 'methods_vit-l_640/float32_batch1.json'
    found = {r['config']: r['gflops_ratio'] for r in json.loads(results.read_text())['results']}
    assert len(found) == 4 and all(line.split('\t')[1].startswith(plain) for line in printed.splitlines())
    before = results.stat().st_mtime_ns
    torch.save(build_model(load_config('configs/segmenter_vit-t_camvid.py')).state_dict(), checkpoint)
    status, said = gpu(out, **env)
    assert status == 0 and 'Failed: nothing' in said and not (out / 'failed.txt').exists(), said
    assert 'mIoU' in (out / 'segmenter_vit-t_cropr_camvid_seed0.jsonl').read_text()
    assert results.stat().st_mtime_ns == before and (tmp_path / 'gpu.tgz').exists()
