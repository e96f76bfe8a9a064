"""A checkpoint is whole or not there, whatever stops the writing of it."""
import errno
import os
import shutil

import pytest
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from mmtr.engine.checkpoint import read_checkpoint
from mmtr.engine.hooks.checkpoint import AtomicBackend, last_checkpoint
from mmtr.errors import UserError


@METRICS.register_module(force=True)
class RisingMetric(BaseMetric):
    """A score that is better at every validation."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.score = getattr(self, 'score', 0) + 1
        return dict(score=self.score)


@pytest.fixture
def cfg(tiny_segmenter):
    """Config that writes a checkpoint every other iteration, keeps one, and the best."""
    tiny_segmenter.default_hooks.checkpoint = dict(
        type='mmtr.CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1)
    return tiny_segmenter


@pytest.fixture
def fill_disk(monkeypatch):
    """Function after which the disk is full as soon as a file whose name contains ``name`` is written."""
    def fill(name, error=errno.ENOSPC):
        sync = os.fsync

        def fsync(descriptor):
            if name in os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}')):
                raise OSError(error, os.strerror(error))
            sync(descriptor)
        monkeypatch.setattr(os, 'fsync', fsync)
    return fill


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != '.py')


def test_a_full_disk_leaves_the_previous_checkpoint_from_which_training_resumes(
        cfg, make_runner, fill_disk, tmp_path, monkeypatch):
    work = tmp_path / 'work'
    saved = {}
    put = AtomicBackend.put

    def recording_put(self, obj, filepath):
        put(self, obj, filepath)
        saved[os.path.basename(filepath)] = obj
    monkeypatch.setattr(AtomicBackend, 'put', recording_put)

    fill_disk('iter_4')
    with pytest.raises(UserError, match=r"disk of .*work' is full; .*iter_2\.pth', is whole, and --resume"):
        make_runner(cfg).train()
    assert files(work) == ['iter_2.pth', 'last_checkpoint']
    assert (work / 'iter_2.pth').read_bytes() == saved['iter_2.pth']
    assert last_checkpoint(str(work)) == str(work / 'iter_2.pth')

    monkeypatch.undo()
    cfg.resume = True
    runner = make_runner(cfg)
    runner.train()
    assert runner.iter == 4
    assert files(work) == ['iter_4.pth', 'last_checkpoint']


def test_before_the_first_checkpoint_there_is_none_to_name(cfg, make_runner, fill_disk, tmp_path):
    fill_disk('iter_2', errno.EDQUOT)
    with pytest.raises(UserError, match='is full; no checkpoint had been written yet'):
        make_runner(cfg).train()
    assert files(tmp_path / 'work') == []


def test_another_failure_says_which(cfg, make_runner, fill_disk):
    fill_disk('iter_2', errno.EIO)
    with pytest.raises(UserError, match='failed .*Input/output error'):
        make_runner(cfg).train()


@pytest.mark.parametrize('scores', ['score', ['score', 'also/score']], ids=['one', 'several'])
def test_a_better_checkpoint_replaces_the_best_only_when_whole(cfg, make_runner, fill_disk, tmp_path, scores):
    work = tmp_path / 'work'
    cfg.val_evaluator = [dict(type='RisingMetric')]
    cfg.default_hooks.checkpoint.update(save_best=scores, rule='greater')
    if isinstance(scores, list):
        cfg.val_evaluator.append(dict(type='RisingMetric', prefix='also'))
    names = ['score'] if scores == 'score' else ['score', 'also_score']
    best = {f'best_{name}_iter_{{}}.pth' for name in names}

    make_runner(cfg).train()
    assert set(files(work)) == {'iter_4.pth', 'last_checkpoint', *(name.format(4) for name in best)}
    iteration = read_checkpoint(work / 'best_score_iter_4.pth')['meta']['iter']
    assert iteration == 4

    shutil.rmtree(work)
    fill_disk('best_score_iter_4')
    with pytest.raises(UserError, match='is full'):
        make_runner(cfg).train()
    assert {name.format(2) for name in best} <= set(files(work))
    assert not any('best_score_iter_4' in name for name in files(work))


def test_a_score_that_is_not_better_keeps_the_best(cfg, make_runner, tmp_path):
    cfg.val_evaluator = [dict(type='RisingMetric')]
    cfg.default_hooks.checkpoint.update(save_best='score', rule='less')
    make_runner(cfg).train()
    assert 'best_score_iter_2.pth' in files(tmp_path / 'work')
    assert read_checkpoint(tmp_path / 'work' / 'iter_4.pth')['message_hub']['runtime_info'][
        'best_ckpt'].endswith('best_score_iter_2.pth')


def test_ctrl_c_while_writing_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    backend = AtomicBackend()
    backend.put(b'old', path)
    monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        backend.put(b'new', path)
    assert files(tmp_path) == ['a.pth'] and path.read_bytes() == b'old'


def test_the_last_checkpoint_is_found_after_its_folder_was_moved(tmp_path):
    assert last_checkpoint(str(tmp_path)) is None
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/work/iter_2.pth')
    with pytest.raises(UserError, match="names the checkpoint '/elsewhere/work/iter_2.pth', which is gone"):
        last_checkpoint(str(tmp_path))
    (tmp_path / 'iter_2.pth').touch()
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / 'iter_2.pth')
