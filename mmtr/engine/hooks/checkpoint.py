"""Checkpoints that are whole or not there."""
import errno
import os
import os.path as osp

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as StockCheckpointHook

from mmtr.errors import UserError
from mmtr.registry import HOOKS


class AtomicBackend(LocalBackend):
    """mmengine's local files, but a file appears whole or not at all: written beside, then renamed."""

    def put(self, obj, filepath):
        """Write bytes; see the class."""
        folder = osp.dirname(osp.abspath(filepath))
        os.makedirs(folder, exist_ok=True)
        partial = osp.join(folder, f'.{osp.basename(filepath)}.{os.getpid()}.part')
        try:
            with open(partial, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, filepath)
        except BaseException:  # Ctrl-C too must leave no partial file
            if osp.exists(partial):
                os.remove(partial)
            raise

    def put_text(self, obj, filepath, encoding='utf-8'):
        """Write a string; see the class."""
        self.put(obj.encode(encoding), filepath)


register_backend('mmtr_atomic', AtomicBackend, force=True)


def write_failure(error, work_dir):
    """``UserError`` for an ``OSError`` while training wrote into ``work_dir``: what failed, how to go on."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = f"the disk of '{work_dir}' is full" if full else f"writing in '{work_dir}' failed ({error})"
    return UserError(f'Training stopped: {why}; {how_to_go_on(work_dir)}.')


def how_to_go_on(work_dir):
    """Half a sentence that names the last whole checkpoint in ``work_dir``, if there is one."""
    last = last_checkpoint(work_dir)
    if last is None:
        return 'no checkpoint had been written yet'
    return f"the last checkpoint, '{last}', is whole, and --resume goes on from it"


def last_checkpoint(work_dir):
    """Path of the checkpoint written last in ``work_dir``, also after that folder was moved; None if none.

    Raises:
        UserError: The file ``last_checkpoint`` names a checkpoint that is gone.
    """
    record = osp.join(work_dir, 'last_checkpoint')
    if not osp.isfile(record):
        return None
    with open(record) as file:
        named = file.read().strip()
    for path in (named, osp.join(work_dir, osp.basename(named))):
        if osp.isfile(path):
            return path
    raise UserError(f"'{record}' names the checkpoint '{named}', which is gone.")


@HOOKS.register_module()
class CheckpointHook(StockCheckpointHook):
    """mmengine's ``CheckpointHook``; a checkpoint replaces older ones only once it is whole on the disk.

    Raises:
        UserError: A checkpoint could not be written, for example because the disk is full. It names the
            previous one, which is untouched.
    """

    def before_train(self, runner):
        """Choose where and how to write."""
        local = '://' not in str(self.out_dir or '')
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='mmtr_atomic')
        super().before_train(runner)

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
                self.out_dir, self.filename_tmpl.format(step), self.file_client_args,
                save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler, meta=meta,
                by_epoch=self.by_epoch, backend_args=self.backend_args, **self.args)
            if is_main_process():
                AtomicBackend().put_text(self.last_ckpt, osp.join(runner.work_dir, 'last_checkpoint'))
        except OSError as error:
            raise write_failure(error, runner.work_dir) from error
        self._remove(outdated)

    def _save_best_checkpoint(self, runner, metrics):
        # The stock method removes the best checkpoint so far before it writes the better one; it removes
        # nothing if it knows of none.
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
        self._set_best({key: better[key] or known[key] for key in known}, single)
        for key, path in known.items():
            if better[key] not in (None, path):
                self._remove(path)

    def _set_best(self, paths, single):
        if single:
            self.best_ckpt_path = paths[None]
        else:
            self.best_ckpt_path_dict = paths

    def _path(self, step):
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _remove(self, path):
        if path and is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
