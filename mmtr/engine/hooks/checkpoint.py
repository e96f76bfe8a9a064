"""A checkpoint hook that writes files atomically and removes only those of its own run."""

import errno
import os
import os.path as osp
from typing import Optional

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as StockCheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner, find_latest_checkpoint

from mmtr.errors import UserError
from mmtr.files import remove_leftovers, written_whole
from mmtr.registry import HOOKS


class AtomicBackend(LocalBackend):
    """mmengine's backend for local files, with atomic writes: to a temporary file, which is then renamed."""

    def put(self, obj: bytes, filepath: str) -> None:
        """Write bytes atomically."""
        with written_whole(filepath) as partial, open(partial, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())

    def put_text(self, obj: str, filepath: str, encoding: str = 'utf-8') -> None:
        """Write a string atomically."""
        self.put(obj.encode(encoding), filepath)


register_backend('mmtr_atomic', AtomicBackend, force=True)


def write_failure(error: OSError, work_dir: str) -> UserError:
    """Return the ``UserError`` for a failed write into ``work_dir`` in training: the cause, and how to go on."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = f"the disk of '{work_dir}' is full" if full else f"writing in '{work_dir}' failed ({error})"
    return UserError(f'Training stopped: {why}; {how_to_go_on(work_dir)}.')


def how_to_go_on(work_dir: str) -> str:
    """Name the last checkpoint in ``work_dir``, if there is one, in half a sentence."""
    last = last_checkpoint(work_dir)
    if last is None:
        return 'no checkpoint had been written yet'
    return f"the last checkpoint, '{last}', is whole, and --resume goes on from it"


def last_checkpoint(work_dir: str) -> Optional[str]:
    """Find the last checkpoint in ``work_dir``, also after the folder was moved or copied; None if there is none.

    Raises:
        UserError: The file ``last_checkpoint`` names a checkpoint that is gone.
    """
    record = osp.join(work_dir, 'last_checkpoint')
    if not osp.isfile(record):
        return None
    with open(record) as file:
        named = file.read().strip()
    # First in the folder itself: in a copy of a folder, the record names the file in the original.
    for path in (osp.join(work_dir, osp.basename(named)), named):
        if osp.isfile(path):
            return path
    raise UserError(f"'{record}' names the checkpoint '{named}', which is gone.")


def _folder(path):
    """The folder of a file, given by a path or a URL."""
    return path.rpartition('/')[0] if '://' in path else osp.dirname(osp.realpath(osp.expanduser(path)))


@HOOKS.register_module()
class CheckpointHook(StockCheckpointHook):
    """mmengine's ``CheckpointHook``, which removes older checkpoints only after the new one is complete on the disk.

    It removes only files that this run wrote, in this process or in the one that it resumes, and only in its own
    folder. The stock hook removes the paths that a checkpoint lists, wherever the checkpoint is from.

    Raises:
        UserError: A checkpoint could not be written, for example because the disk is full. Names the
            previous checkpoint, which stays.
    """

    def before_train(self, runner: Runner) -> None:
        """Choose the file backend, take over the checkpoints of a resumed run, remove half-written files."""
        local = '://' not in str(self.out_dir or '')
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='mmtr_atomic')
        info = runner.message_hub.runtime_info
        kept = info.get('keep_ckpt_ids') or []
        if kept:
            info['keep_ckpt_ids'] = []  # the stock hook would remove the surplus at once
        super().before_train(runner)
        #: Paths of the files that may be removed.
        self._own = set()
        resumed = runner._resume and (runner._load_from or find_latest_checkpoint(runner.work_dir))
        self._take_over(info, kept, bool(resumed) and _folder(str(resumed)) == _folder(self._path('any')))
        if is_main_process():
            for folder in {str(runner.work_dir), *([str(self.out_dir)] if local else ())}:
                remove_leftovers(folder)

    def _take_over(self, info, kept, here):
        """Take over the files that the resumed process wrote; its records may hold an earlier name of the folder.

        Args:
            info: ``runtime_info`` of the resumed run.
            kept: Numbers of the checkpoints that it kept.
            here: Whether its folder is that of this run.
        """
        folder, last = osp.split(info.get('last_ckpt') or '')
        # If the last name does not match, one run counts epochs and the other iterations.
        if here and kept and self.max_keep_ckpts > 0 and last == self.filename_tmpl.format(kept[-1]):
            self._own.update(map(self._path, kept))
            for step in kept[: -self.max_keep_ckpts]:
                self._remove(self._path(step))
            self.keep_ckpt_ids.extend(kept)  # a full deque drops its oldest
            info['keep_ckpt_ids'] = list(self.keep_ckpt_ids)
        for key, path in info.items():
            if not key.startswith('best_ckpt') or not path:
                continue
            if here and osp.dirname(path) == folder:
                info[key] = self._in_folder(osp.basename(path))
                self._own.add(info[key])
            else:
                info[key] = None
                print_log(f"The best checkpoint so far, '{path}', is of another folder and stays there.", 'current')
        if hasattr(self, 'best_ckpt_path'):
            self.best_ckpt_path = info.get('best_ckpt')
        elif self.save_best:
            self.best_ckpt_path_dict = {key: info.get(f'best_ckpt_{key}') for key in self.best_ckpt_path_dict}

    def _save_checkpoint_with_step(self, runner, step, meta):
        outdated = None
        if self.max_keep_ckpts > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self._path(self.keep_ckpt_ids[0])
            self.keep_ckpt_ids.append(step)  # a full deque drops its oldest
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                self.filename_tmpl.format(step),
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                AtomicBackend().put_text(self.last_ckpt, osp.join(runner.work_dir, 'last_checkpoint'))
        except OSError as error:
            raise write_failure(error, runner.work_dir) from error
        self._own.add(self.last_ckpt)
        self._remove(outdated)

    def _save_best_checkpoint(self, runner, metrics):
        # The stock method removes the best checkpoint before it writes the better one: it is told that there is none.
        if not self.save_best:
            return
        single = hasattr(self, 'best_ckpt_path')
        known = {None: self.best_ckpt_path} if single else dict(self.best_ckpt_path_dict)
        self._set_best(dict.fromkeys(known), single)
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            raise write_failure(error, runner.work_dir) from error
        better = {None: self.best_ckpt_path} if single else self.best_ckpt_path_dict
        self._own.update(path for path in better.values() if path)
        self._set_best({key: better[key] or known[key] for key in known}, single)
        for key, path in known.items():
            if better[key] not in (None, path):
                self._remove(path)

    def _set_best(self, paths, single):
        if single:
            self.best_ckpt_path = paths[None]
        else:
            self.best_ckpt_path_dict = paths

    def _publish_model(self, runner, ckpt_path):
        if ckpt_path in self._own and self.file_backend.isfile(ckpt_path):
            super()._publish_model(runner, ckpt_path)
        elif ckpt_path:
            print_log(f"'{ckpt_path}' is not published: it is none of this run in '{self.out_dir}'.", 'current')

    def _path(self, step):
        return self._in_folder(self.filename_tmpl.format(step))

    def _in_folder(self, name):
        return self.file_backend.join_path(self.out_dir, name)

    def _remove(self, path):
        if path in self._own and is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
