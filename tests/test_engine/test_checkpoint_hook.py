"""A checkpoint is whole or not there, whatever stops the writing of it."""

import copy
import errno
import os
import shutil
import subprocess
import sys

import pytest
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from mmtr.engine.hooks.checkpoint import AtomicBackend, last_checkpoint
from mmtr.errors import UserError
from mmtr.weights.files import read_checkpoint


@METRICS.register_module(force=True)
class RisingMetric(BaseMetric):
    """A score that is better at every validation, in whichever run."""

    score = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        RisingMetric.score += 1
        return dict(score=RisingMetric.score)


@pytest.fixture
def cfg(tiny_segmenter):
    """Config that writes a checkpoint every other iteration, keeps one, and the best."""
    tiny_segmenter.default_hooks.checkpoint = dict(
        type='mmtr.CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1
    )
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


@pytest.mark.slow
def test_a_full_disk_leaves_the_previous_checkpoint_from_which_training_resumes(
    cfg, make_runner, fill_disk, tmp_path, monkeypatch
):
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


@pytest.mark.slow
def test_before_the_first_checkpoint_there_is_none_to_name(cfg, make_runner, fill_disk, tmp_path):
    fill_disk('iter_2', errno.EDQUOT)
    with pytest.raises(UserError, match='is full; no checkpoint had been written yet'):
        make_runner(cfg).train()
    assert files(tmp_path / 'work') == []


@pytest.mark.slow
def test_another_failure_says_which(cfg, make_runner, fill_disk):
    fill_disk('iter_2', errno.EIO)
    with pytest.raises(UserError, match='failed .*Input/output error'):
        make_runner(cfg).train()


@pytest.mark.slow
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
    assert read_checkpoint(tmp_path / 'work' / 'iter_4.pth')['message_hub']['runtime_info']['best_ckpt'].endswith(
        'best_score_iter_2.pth'
    )


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


@pytest.fixture
def best_cfg(cfg):
    """``cfg`` with a better score at each validation, of which the best checkpoint is kept."""
    cfg.val_evaluator = [dict(type='RisingMetric'), dict(type='RisingMetric', prefix='also')]
    cfg.default_hooks.checkpoint.update(save_best='score', rule='greater')
    cfg.custom_hooks = [dict(type='mmtr.ResumeCheckHook')]
    cfg.val_dataloader.dataset.indices = 1
    return cfg


@pytest.fixture
def run(best_cfg, make_runner):
    """Function that trains up to an iteration in a folder, from a checkpoint if one is given."""

    def run(folder, until, resumed=None, **checkpoint):
        cfg = copy.deepcopy(best_cfg)
        cfg.work_dir, cfg.train_cfg.max_iters = str(folder), until
        cfg.default_hooks.checkpoint.update(checkpoint)
        cfg.load_from, cfg.resume = resumed and str(resumed), resumed is not None
        make_runner(cfg).train()

    return run


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    'saved, linked',
    [(dict(), True), (dict(save_best=['score', 'also/score'], published_keys=['state_dict']), False)],
    ids=['one best', 'several, published'],
)
def test_a_run_that_is_resumed_elsewhere_is_left_as_it_is(run, tmp_path, saved, linked):
    one, other = tmp_path / 'one', tmp_path / 'other'
    run(one, 2, **saved)
    assert 'best_score_iter_2.pth' in files(one)
    before = content(one)
    resumed = one / 'iter_2.pth'
    if linked:
        other.mkdir()
        (other / 'iter_2.pth').symlink_to(resumed)
        (other / 'best_score_iter_2.pth').write_text('of an earlier run')
        resumed = other / 'iter_2.pth'
    run(other, 4, resumed, **saved)
    assert content(one) == before
    assert {'iter_4.pth', 'best_score_iter_4.pth'} < set(files(other))
    assert not linked or {'iter_2.pth', 'best_score_iter_2.pth'} < set(files(other))


@pytest.mark.slow
def test_relative_records_of_another_project_name_nothing_here(run, tmp_path, monkeypatch):
    for project in ('one', 'other'):
        (tmp_path / project).mkdir()
    monkeypatch.chdir(tmp_path / 'one')
    run('work', 2, out_dir='out')
    monkeypatch.chdir(tmp_path / 'other')
    earlier = tmp_path / 'other' / 'out' / 'work'
    earlier.mkdir(parents=True)
    for name in ('best_score_iter_2.pth', 'iter_2.pth'):
        (earlier / name).write_text('of an earlier run')
    run('work', 4, '../one/out/work/iter_2.pth', out_dir='out')
    assert files(earlier) == ['best_score_iter_2.pth', 'best_score_iter_4.pth', 'iter_2.pth', 'iter_4.pth']


@pytest.mark.slow
def test_a_run_whose_folder_was_moved_or_copied_goes_on_as_its_own(run, tmp_path):
    run(tmp_path / 'one', 2)
    before = content(tmp_path / 'one')
    shutil.copytree(tmp_path / 'one', tmp_path / 'copy')
    run(tmp_path / 'copy', 4, last_checkpoint(tmp_path / 'copy'))
    assert content(tmp_path / 'one') == before
    assert files(tmp_path / 'copy') == ['best_score_iter_4.pth', 'iter_4.pth', 'last_checkpoint']


@pytest.mark.slow
def test_fewer_are_kept_from_now_on_and_numbers_of_other_names_count_for_nothing(run, tmp_path):
    run(tmp_path / 'one', 3, interval=1, max_keep_ckpts=3, save_best=None)
    assert {'iter_1.pth', 'iter_2.pth', 'iter_3.pth'} < set(files(tmp_path / 'one'))
    shutil.copytree(tmp_path / 'one', tmp_path / 'other')
    run(tmp_path / 'one', 4, tmp_path / 'one' / 'iter_3.pth', interval=1, max_keep_ckpts=2)
    assert [name for name in files(tmp_path / 'one') if name.startswith('iter')] == ['iter_3.pth', 'iter_4.pth']
    (tmp_path / 'other' / 'step_1.pth').write_text('mine')
    run(
        tmp_path / 'other',
        4,
        tmp_path / 'other' / 'iter_3.pth',
        interval=1,
        max_keep_ckpts=1,
        filename_tmpl='step_{}.pth',
    )
    assert {'step_1.pth', 'iter_1.pth', 'iter_3.pth', 'step_4.pth'} < set(files(tmp_path / 'other'))


@pytest.mark.slow
def test_what_a_killed_process_left_half_written_goes_with_the_next_run(run, tmp_path):
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    work = tmp_path / 'work'
    work.mkdir()
    gone = [f'.iter_4.pth.{dead.pid}.part', f'.last_checkpoint.{dead.pid}.part', f'.best_a.pth.{os.getpid()}.part']
    kept = [
        f'.iter_4.pth.{os.getppid()}.part',
        f'.notes.txt.{dead.pid}.part',
        f'iter_4.pth.{dead.pid}.part',
        '.iter_4.pth.mine.part',
    ]
    for folder in (work, tmp_path):
        for name in (*gone, *kept):
            (folder / name).touch()
    run(work, 2)
    assert {path.name for path in work.glob('*.part')} == set(kept)
    assert {path.name for path in tmp_path.glob('*.part')} == {*gone, *kept}
