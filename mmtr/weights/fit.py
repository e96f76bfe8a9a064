"""How the weights of a file fit a module, and what is left at random where a model starts from one."""

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

#: Children of a backbone that no pretrained file has.
ADDED = ('peft', 'token_reducer')


class Fit:
    """Which weights of a state dict fit a module, by name and shape; counters of batches do not matter.

    Args:
        module: What is to be filled.
        state: Its names are the module's.
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
        """Whether not one weight fits."""
        return not self._filled()

    def difference(self) -> str:
        """In words; '' if the state dict covers the module exactly."""
        parts = [
            (self.missing, 'missing'),
            (self.unexpected, 'unexpected'),
            (list(self.reshaped.values()), 'of another shape'),
        ]
        return ', '.join(f'{len(names)} {what} ({some(names)})' for names, what in parts if names)

    def loaded(self) -> str:
        """How much of the module it fills, in words; what a reducer or a ``peft`` adds counts if it is in the file."""
        filled = self._filled()
        share = 100 * sum(self.sizes[name] for name in filled) / max(sum(self.sizes.values()), 1)
        # Not 100.0 for what is not all.
        share = share if len(filled) == len(self.sizes) else min(share, 99.9)
        return f'{len(filled)} of {len(self.sizes)} weights ({share:.1f} % of their numbers)'

    def _filled(self):
        absent = {*self.missing, *self.reshaped}
        return [name for name in self.sizes if name not in absent]


def uncovered(module: nn.Module, state: dict[str, Tensor]) -> str:
    """How a state dict differs from a module's, in words; '' if it covers the module exactly.

    It does, too, where the module loads it by other names: some rename keys of older versions of themselves.

    Raises:
        UserError: A part of the module knows what is wrong.
    """
    difference = Fit(module, state).difference()
    if difference:
        with suppress(RuntimeError):
            module.load_state_dict(state)
            return ''
    return difference


def left_random(module: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Weights of a module's layers that a state dict does not fill.

    What has no counterpart in any file does not count: vectors and what starts as a constant (new norms, offsets of a
    deformable convolution), and what a reducer or a ``peft`` has added.
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
    """The prefix under which a state dict has the layers of a module, most of the same shape; None: it has them not."""
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
    """The ``init_cfg`` that starts a module from the part of a file."""
    return f"init_cfg=dict(type='Pretrained', checkpoint='{path}'" + (f", prefix='{prefix}')" if prefix else ')')


class PretrainedWatch:
    """Looks at what modules load from the files of their ``init_cfg`` while a model's ``init_weights`` runs.

    mmengine and its like load what fits, warn, and leave the rest random.

    Args:
        model: Whose ``init_weights`` is about to run.
        name: Its name in messages.
        allow_partial: Warn, and go on; None: no option is offered.

    Raises:
        UserError: Nothing fits, or layers of a backbone are left at random; says which prefix would fit. At once:
            nothing in a file has the prefix that is given. When it is closed: a file was not read.
    """

    def __init__(self, model: nn.Module, name: str = 'model', allow_partial: Optional[bool] = None):
        self.allow_partial, self.handles, self.unread = allow_partial, [], {}
        for path, module in model.named_modules():
            for cfg in () if getattr(module, 'is_init', False) else _pretrained(module):
                where = f'{name}.{path}'.rstrip('.')
                if cfg.get('prefix'):
                    self._check_prefix(module, where, cfg)
                self.unread[where] = module, cfg
                for part in module.modules():
                    look = self._looks_at(module, where, cfg, part is module)
                    self.handles.append(part._register_load_state_dict_pre_hook(look))

    def close(self) -> None:
        """Look no longer, once ``init_weights`` has run; raises a ``UserError`` for a file that was not read."""
        for handle in self.handles:
            handle.remove()
        self.handles, unread, self.unread = [], self.unread, {}
        for where, (module, cfg) in unread.items():
            self._say(
                f"{where} starts from random weights: nothing was read of '{cfg['checkpoint']}', for a "
                f'{type(module).__name__} does not look at its init_cfg'
            )

    def _looks_at(self, module, where, cfg, whole):
        # A function, which a copy of the module shares: a hook may copy the model before the weights are there.
        def look(state, prefix, *args):
            if self.handles and not prefix:
                self.unread.pop(where, None)
                if whole:
                    self._put_prefix_off(module, state, cfg)
                    self._check(module, where, cfg, state)

        return look

    @staticmethod
    def _put_prefix_off(module, state, cfg):
        """Some classes of mmseg read the file themselves, and forget the prefix."""
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
        # mmengine stops there in any case.
        raise UserError(f'{text}.' if fitting is None else f'{text}; it fits with {start_from(file, fitting)}.')

    def _say(self, text):
        if not self.allow_partial:
            raise UserError(text + ('.' if self.allow_partial is None else '; --allow-partial trains it nevertheless.'))
        print_log(f'{text}.', 'current', logging.WARNING)


def backbones(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of each backbone in a model, the outermost where one is in another."""
    found = [(path, module) for path, module in model.named_modules() if path.split('.')[-1] == 'backbone']
    return [(path, module) for path, module in found if 'backbone' not in path.split('.')[:-1]]


def part_of(state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """What a state dict has of one part of a model, by the names in that part; '': all of it."""
    if not path:
        return state
    return {name.removeprefix(f'{path}.'): value for name, value in state.items() if name.startswith(f'{path}.')}


def _shape(value):
    return tuple(getattr(value, 'shape', ()))


def _differ(name, have, want):
    return f'{name}: {have} in the file, {want} in the model'


def _layers(module):
    """Weights of layers, tables and kernels by name, without vectors and what no file has."""
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
