"""Compare the weights of a file with a module: which fit, and which the file would leave random."""

import logging
import math
from contextlib import suppress
from typing import Optional

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.words import some

#: Children of a backbone that pretrained files lack.
ADDED = ('peft', 'token_reducer')


class Fit:
    """Compares a state dict with a module by the names and shapes of weights; ignores ``num_batches_tracked``.

    Args:
        module: The module that the weights are for.
        state: A state dict with the names of the module.

    Attributes:
        missing: Names that only the module has.
        unexpected: Names that only the state dict has.
        reshaped: Name -> both shapes in words, where they differ.
        sizes: Name -> number of elements; without weights of a reducer or ``peft`` that the state dict lacks.
    """

    def __init__(self, module: nn.Module, state: dict[str, Tensor]):
        have, want = (
            {name: _shape(value) for name, value in each.items() if not name.endswith('num_batches_tracked')}
            for each in (state, module.state_dict())
        )
        self.missing = [name for name in want if name not in have]
        self.unexpected = [name for name in have if name not in want]
        self.reshaped = {
            name: _differ(name, have[name], want[name]) for name in want if name in have and have[name] != want[name]
        }
        self.sizes = {
            name: math.prod(shape) for name, shape in want.items() if name in have or not {*ADDED} & {*name.split('.')}
        }

    @property
    def nothing(self) -> bool:
        """Whether no weight fits."""
        return not self._filled()

    def difference(self) -> str:
        """Describe how state dict and module differ; '' if all names and shapes are the same."""
        parts = [
            (self.missing, 'missing'),
            (self.unexpected, 'unexpected'),
            (list(self.reshaped.values()), 'of another shape'),
        ]
        return ', '.join(f'{len(names)} {what} ({some(names)})' for names, what in parts if names)

    def loaded(self) -> str:
        """Describe how many weights of the module the state dict fills, out of those in ``sizes``."""
        filled = self._filled()
        share = 100 * sum(self.sizes[name] for name in filled) / max(sum(self.sizes.values()), 1)
        # Never 100.0 unless all weights are filled.
        share = share if len(filled) == len(self.sizes) else min(share, 99.9)
        return f'{len(filled)} of {len(self.sizes)} weights ({share:.1f} % of their numbers)'

    def _filled(self):
        absent = {*self.missing, *self.reshaped}
        return [name for name in self.sizes if name not in absent]


def uncovered(module: nn.Module, state: dict[str, Tensor]) -> str:
    """Describe how a state dict differs from that of a module; '' if it covers the module exactly.

    Some modules rename the keys of their older versions when they load them. If the module loads the state dict, the
    weights are loaded into it and the result is ''.

    Raises:
        UserError: A part of the module refuses the state dict while it is loaded.
    """
    difference = Fit(module, state).difference()
    if difference:
        with suppress(RuntimeError):
            module.load_state_dict(state)
            return ''
    return difference


def left_random(module: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """List the weights of a module's layers that a state dict does not fill and that are random.

    Some weights are not counted: vectors; weights that start as a constant (new norms, the offsets of a deformable
    convolution); weights of a reducer or ``peft``.
    """
    left = []
    for name, value in _layers(module).items():
        if name not in state:
            if bool((value != value.flatten()[0]).any()):
                left.append(name)
        elif _shape(state[name]) != _shape(value):
            left.append(_differ(name, _shape(state[name]), _shape(value)))
    return left


def prefix_in(module: nn.Module, state: dict[str, Tensor]) -> Optional[str]:
    """Find the prefix under which a state dict has all layers of a module, most of them of the same shape; or None."""
    wanted = _layers(module)
    longest = max(wanted, key=len, default='')
    for name in state:
        prefix = name[: len(name) - len(longest)]
        if (
            longest
            and name.endswith(longest)
            and prefix[-1:] in ('', '.')
            and all(prefix + each in state for each in wanted)
        ):
            if 2 * sum(_shape(state[prefix + each]) == _shape(value) for each, value in wanted.items()) > len(wanted):
                return prefix
    return None


def start_from(path: str, prefix: str) -> str:
    """Write the ``init_cfg`` that starts a module from the weights of a file that have a prefix."""
    return f"init_cfg=dict(type='Pretrained', checkpoint='{path}'" + (f", prefix='{prefix}')" if prefix else ')')


class PretrainedWatch:
    """Checks what modules load from the pretrained file of their ``init_cfg`` while ``init_weights`` runs.

    mmengine loads the weights that fit, warns, and leaves the rest random.

    Args:
        model: The model; its ``init_weights`` is called next.
        name: Name of the model in messages.
        allow_partial: True: warn instead of raising. False: the error names --allow-partial; None: it does not.

    Raises:
        UserError: When it is built: an ``init_cfg`` names no file, or no weight of its file has its ``prefix``. While
            weights are loaded: no weight fits, or layers of a backbone stay random; names the prefix that would fit.
            In ``close``: a file was not read.
    """

    def __init__(self, model: nn.Module, name: str = 'model', allow_partial: Optional[bool] = None):
        self.allow_partial, self.handles, self.unread = allow_partial, [], {}
        for path, module in model.named_modules():
            for cfg in () if getattr(module, 'is_init', False) else _pretrained(module):
                where = f'{name}.{path}'.rstrip('.')
                if cfg.get('checkpoint') == '':
                    raise UserError(
                        f"{where}.init_cfg.checkpoint='' names no file: give the pretrained weights that it starts "
                        f'from, or {where}.init_cfg=None to start from random ones.'
                    )
                if cfg.get('prefix'):
                    self._check_prefix(module, where, cfg)
                self.unread[where] = module, cfg
                for part in module.modules():
                    look = self._looks_at(module, where, cfg, part is module)
                    self.handles.append(part._register_load_state_dict_pre_hook(look))

    def close(self) -> None:
        """Stop the check after ``init_weights``; raises a ``UserError`` for a file that was not read."""
        for handle in self.handles:
            handle.remove()
        self.handles, unread, self.unread = [], self.unread, {}
        for where, (module, cfg) in unread.items():
            self._say(
                f"{where} starts from random weights: nothing was read of '{cfg['checkpoint']}', for a "
                f'{type(module).__name__} does not look at its init_cfg'
            )

    def _looks_at(self, module, where, cfg, whole):
        # A closure, which copies of the module share: a hook may copy the model before its weights are loaded.
        def look(state, prefix, *args):
            if self.handles and not prefix:
                self.unread.pop(where, None)
                if whole:
                    self._put_prefix_off(module, state, cfg)
                    self._check(module, where, cfg, state)

        return look

    @staticmethod
    def _put_prefix_off(module, state, cfg):
        """Remove the prefix from a state dict: some classes of mmseg read the file themselves and ignore the prefix."""
        prefix = (cfg.get('prefix') or '').rstrip('.') + '.'
        if prefix != '.' and not {*state} & {*module.state_dict()}:
            part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            state.clear()
            state.update(part)

    def _check(self, module, where, cfg, state):
        fit, left = Fit(module, state), []
        if {'backbone', 'teacher'} & {*where.split('.')}:
            left = left_random(module, state)
        else:
            left = [
                f'{path}.{name}'
                for path, backbone in backbones(module)
                for name in left_random(backbone, part_of(state, path))
            ]
        file = cfg['checkpoint']
        if not fit.nothing and not left:
            print_log(f"{where} starts from '{file}': {fit.loaded()}.", 'current')
            return
        text = (
            f"{where} would start from random weights: '{file}' fills {fit.loaded()}, and not "
            f'{some(left or fit.missing)}'
        )
        prefix = prefix_in(module, state)
        if prefix:
            text += f'; it fits with {where}.{start_from(file, prefix)}'
        elif cfg.get('prefix') and 'pos_embed' in fit.reshaped:
            text += "; mmtr's backbones, such as type='mmtr.VisionTransformer', resize that table in a part of a file"
        self._say(text)

    def _check_prefix(self, module, where, cfg):
        file, prefix = cfg['checkpoint'], cfg['prefix'].rstrip('.') + '.'
        state = CheckpointLoader.load_checkpoint(file, map_location='cpu', logger='silent')
        state = state.get('state_dict', state)
        if any(name.startswith(prefix) for name in state):
            return
        text, fitting = f"No weight in '{file}' has the prefix '{prefix}' of {where}.init_cfg", prefix_in(module, state)
        # An error whatever allow_partial is: mmengine fails here too.
        raise UserError(f'{text}.' if fitting is None else f'{text}; it fits with {start_from(file, fitting)}.')

    def _say(self, text):
        if not self.allow_partial:
            raise UserError(text + ('.' if self.allow_partial is None else '; --allow-partial trains it nevertheless.'))
        print_log(f'{text}.', 'current', logging.WARNING)


def backbones(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List name and module of each backbone in a model; of nested backbones only the outermost."""
    found = [(path, module) for path, module in model.named_modules() if path.split('.')[-1] == 'backbone']
    return [(path, module) for path, module in found if 'backbone' not in path.split('.')[:-1]]


def part_of(state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """Select the weights of one part of a model, without the prefix ``path.``; '' selects all."""
    if not path:
        return state
    return {name.removeprefix(f'{path}.'): value for name, value in state.items() if name.startswith(f'{path}.')}


def _shape(value):
    return tuple(getattr(value, 'shape', ()))


def _differ(name, have, want):
    return f'{name}: {have} in the file, {want} in the model'


def _layers(module):
    """Parameters of two or more dimensions by name, without those of a reducer or ``peft``."""
    return {
        name: value
        for name, value in module.named_parameters()
        if value.dim() > 1 and not {*ADDED} & {*name.split('.')}
    }


def _pretrained(module):
    cfgs = getattr(module, 'init_cfg', None) or ()
    return [
        cfg
        for cfg in ((cfgs,) if isinstance(cfgs, dict) else cfgs)
        if isinstance(cfg, dict) and cfg.get('type') in ('Pretrained', 'Pretrained_Part', PretrainedInit)
    ]
