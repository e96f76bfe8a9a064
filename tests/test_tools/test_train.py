"""tools/train.py: precision, interruptions, resuming, and what its work folder keeps."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from run_records import losses

from mmtr.weights.files import read_checkpoint
from tests.conftest import TOOLS


@HOOKS.register_module(force=True)
class CtrlC(Hook):
    """The user presses Ctrl-C at the fourth iteration."""

    def __init__(self, wrapped):
        self.wrapped = wrapped

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter < 3:
            return
        if not self.wrapped:
            raise KeyboardInterrupt
        try:
            raise KeyboardInterrupt
        except BaseException:  # as mmengine does while it formats a config
            raise SyntaxError('Failed to format the config file') from None


@pytest.mark.slow
def test_mixed_precision_on_a_cpu_is_close_to_full_precision(config, tool, tmp_path):
    for name in ('full', 'amp'):
        status, _ = tool(
            'train',
            config,
            '--work-dir',
            tmp_path / name,
            *['--amp'] * (name == 'amp'),
            '--cfg-options',
            'train_cfg.max_iters=2',
            'randomness.seed=1',
        )
        assert status == 0
    full, amp = losses(tmp_path / 'full')[1], losses(tmp_path / 'amp')[1]
    assert full != amp and full == pytest.approx(amp, rel=0.02)
    saved = read_checkpoint(tmp_path / 'amp' / 'iter_2.pth')['state_dict']
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert tool('test', config, tmp_path / 'amp' / 'iter_2.pth', '--amp')[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize('augmented', [True, False])
def test_resuming_gives_the_losses_of_an_uninterrupted_run(config, tool, tmp_path, augmented):
    if augmented and hasattr(InfiniteSampler, 'skip'):
        pytest.skip('this mmengine resumes the order of the images but not the draws of augmentation')
    if not augmented:
        plain = [dict(type=name) for name in ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs')]
        config.write_text(f"{config.read_text()}\ntrain_dataloader['dataset']['pipeline'] = {plain}\n")
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    assert tool('train', config, '--work-dir', whole) == (0, '')
    broken.mkdir()  # what is left of the same run when it is broken off at the second iteration
    shutil.copy(whole / 'iter_2.pth', broken)
    (broken / 'last_checkpoint').write_text(str(whole / 'gone' / 'iter_2.pth'))
    assert tool('train', config, '--work-dir', broken, '--resume')[0] == 0
    expected, found = losses(whole), losses(broken)
    assert set(expected) == {1, 2, 3, 4} and set(found) == {3, 4}
    assert found == {step: expected[step] for step in (3, 4)}
    ends = [read_checkpoint(work / 'iter_4.pth')['state_dict'] for work in (whole, broken)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize('wrapped', [False, True])
def test_ctrl_c_says_how_to_go_on_and_resume_does(config, tool, tmp_path, wrapped):
    work = tmp_path / 'work'
    pressed = tmp_path / 'ctrl_c.py'
    pressed.write_text(f"_base_ = 'tiny.py'\ncustom_hooks = [dict(type='CtrlC', wrapped={wrapped})]\n")
    status, said = tool('train', pressed)
    assert status == 130
    assert said == (
        f"Interrupted at iteration 3; the last checkpoint, '{work}/iter_2.pth', is whole, and "
        '--resume goes on from it.\n'
    )
    assert not list(work.glob('.*.part'))
    assert tool('train', config, '--resume') == (0, '')
    assert read_checkpoint(work / 'iter_4.pth')['meta']['iter'] == 4


@pytest.fixture
def interruptible():
    # A suite that a shell started in the background ignores SIGINT, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_real_sigint_ends_with_130_and_one_line(config, tmp_path, interruptible):
    process = subprocess.Popen(
        [
            sys.executable,
            TOOLS / 'train.py',
            config,
            '--cfg-options',
            'train_cfg.max_iters=1000000',
            'train_cfg.val_interval=1000000',
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    try:
        while not (tmp_path / 'work' / 'last_checkpoint').exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert said.strip().splitlines()[-1].startswith('Interrupted at iteration')
    assert 'KeyboardInterrupt' not in said and not list((tmp_path / 'work').glob('.*.part'))


def test_resume_needs_the_state_of_a_run_or_starts_anew(config, tool, tmp_path, weights):
    assert tool('train', config, '--resume')[0] == 0
    assert set(losses(tmp_path / 'work')) == {1, 2, 3, 4}
    status, said = tool('train', config, '--resume', weights)
    assert status == 2 and 'no state of a training run' in said and 'load_from=' in said


@pytest.mark.slow
def test_a_folder_keeps_the_record_of_its_training(config, tool, tmp_path):
    work = tmp_path / 'work'
    assert tool('train', config)[0] == 0
    trained = (work / 'tiny.py').read_text()
    assert Config.fromfile(work / 'tiny.py').train_cfg.max_iters == 4
    assert tool('test', config, work / 'iter_4.pth')[0] == 0
    assert (work / 'tiny.py').read_text() == trained
    (tested,) = work.glob('*/tiny.py')
    assert Config.fromfile(tested).train_cfg is None

    checkpoint = read_checkpoint(work / 'iter_2.pth')
    checkpoint['meta']['iter'] = 10**9
    torch.save(checkpoint, work / 'iter_2.pth')
    for second in range(2):  # other runs that began at the same time
        log = work / time.strftime('%Y%m%d_%H%M%S', time.localtime(time.time() + second))
        log.mkdir(exist_ok=True)
        (log / f'{log.name}.log').write_text('of another run')
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    for options in (
        ['--resume', work / 'iter_2.pth'],
        ['--cfg-options', f'load_from={work}/iter_2.pth', 'resume=True', 'log_level=ERROR'],
    ):
        status, said = tool('train', config, *options)
        assert (status, said) == (
            2,
            f"Error: '{work}/iter_2.pth' cannot be resumed: its meta.iter is 1000000000, and this run ends at 4.\n",
        )
        assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


@pytest.mark.slow
def test_a_config_in_the_work_folder_is_not_overwritten(config, tool, tmp_path):
    written = config.read_text()
    assert tool('train', config, '--work-dir', tmp_path, '--cfg-options', 'train_cfg.max_iters=1')[0] == 0
    assert config.read_text() == written
    (recorded,) = tmp_path.glob('*/tiny.py')
    assert Config.fromfile(recorded).train_cfg.max_iters == 1
