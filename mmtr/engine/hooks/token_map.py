"""A hook that draws token maps while a model is validated or tested."""

import logging
import os.path as osp
from contextlib import ExitStack

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmtr.errors import UserError
from mmtr.registry import HOOKS
from mmtr.visualization import record_token_maps, seen_image, token_picture

from .coverage import unwrap


@HOOKS.register_module()
class TokenMapHook(Hook):
    """Gives pictures of the token maps to the runner's visualizer, and so to all its ``vis_backends``.

    Of an image that is run in several windows or flips, the first is drawn.

    Args:
        interval: Draw every ``interval``-th batch of validation and test.
        max_layers: Most layers that are drawn of an image, see ``token_picture``.

    Raises:
        UserError: A setting is no whole number above 0, or the model has no tokens that can be reduced.
    """

    def __init__(self, interval: int = 50, max_layers: int = 4):
        for key, value in (('interval', interval), ('max_layers', max_layers)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f'TokenMapHook.{key}={value!r} must be a whole number above 0.')
        self.interval, self.max_layers = interval, max_layers
        self._recording = ExitStack()

    def before_run(self, runner: Runner) -> None:
        """Find the backbone; a ``TokenReductionHook`` has run before."""
        self._backbone = getattr(unwrap(runner.model), 'backbone', None)
        if not hasattr(self._backbone, 'token_reducer'):
            raise UserError(
                f'TokenMapHook cannot picture the tokens of a {type(self._backbone).__name__}: use a '
                'backbone of mmtr, or mmtr.TokenReductionHook besides.'
            )

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train'):
        if mode != 'train' and is_main_process() and self.every_n_inner_iters(batch_idx, self.interval):
            self._runs = self._recording.enter_context(record_token_maps(self._backbone))

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode='train'):
        if mode == 'train' or not is_main_process() or not self.every_n_inner_iters(batch_idx, self.interval):
            return
        self._recording.close()
        images, maps = self._runs[0]
        if not maps:
            print_log('TokenMapHook has nothing to draw: no token was reduced.', 'current', logging.WARNING)
            return
        preprocessor = unwrap(runner.model).data_preprocessor
        for i, sample in enumerate(outputs):
            picture = token_picture(
                seen_image(preprocessor, images[i]), maps, self._backbone.patch_size, i, self.max_layers
            )
            name = osp.splitext(osp.basename(sample.get('img_path', f'{batch_idx}_{i}')))[0]
            runner.visualizer.add_image(f'{mode}_tokens_{name}', picture, runner.iter)
