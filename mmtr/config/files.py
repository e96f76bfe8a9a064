"""Read configs from files and from installed packages ('mmtr::NAME.py', 'mmseg::...'), under either OpenMMLab stack."""

import argparse
import functools
import importlib.util
import os.path as osp
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Optional

from mmengine import hub
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from mmtr.errors import UserError

from .options import Options, TokenReduction
from .pure_python import is_pure, with_names
from .types import full_name, is_type

PACKAGE = Path(__file__).resolve().parents[1]
# A wheel has configs and tools in .mim, as every OpenMMLab package; in a checkout they lie beside the package.
MIM = PACKAGE / '.mim' if (PACKAGE / '.mim').is_dir() else PACKAGE.parent
OWN = 'mmtr::'


def _in_own(path):
    """Return the file of 'mmtr::NAME.py'; any other path is returned as it is."""
    return osp.join(MIM, 'configs', path[len(OWN) :]) if str(path).startswith(OWN) else path


def _find_own_configs():
    # mmengine's lookup has a fixed list of packages, requires a folder before the name, and does not find the editable
    # installs of current pip. So mmtr::NAME.py is replaced by the path of its file, which has no scope either.
    get_base, get_config, read = Config._get_cfg_path, hub.get_config, Config.fromfile

    def _get_cfg_path(cfg_path, filename):
        return (_in_own(cfg_path), None) if cfg_path.startswith(OWN) else get_base(cfg_path, filename)

    def get_own_config(cfg_path, pretrained=False):
        """See ``mmengine.hub.get_config``."""
        if not cfg_path.startswith(OWN):
            return get_config(cfg_path, pretrained)
        if pretrained:
            raise UserError(f"pretrained=True, but no weights of '{cfg_path}' are published: use pretrained=False.")
        return Config.fromfile(cfg_path)

    @functools.wraps(read)
    def fromfile(filename, *args, **kwargs):
        return read(_in_own(filename), *args, **kwargs)

    Config._get_cfg_path, Config.fromfile = staticmethod(_get_cfg_path), staticmethod(fromfile)
    hub.get_config = hub.hub.get_config = get_own_config


def _find_by_import_name(module):
    # mmengine looks a module up by the name of its distribution, which the maintained fork has changed, and
    # mmengine.hub would ask to install a package that it does not find.
    try:
        version(MODULE2PACKAGE[module])
    except PackageNotFoundError:
        MODULE2PACKAGE[module] = module


def load_config(path: str) -> Config:
    """Read the config of a file, or a packaged one such as 'mmtr::NAME.py' or 'mmseg::segmenter/NAME.py'.

    Classes in it are replaced by their names: see ``mmtr.config.pure_python.with_names``.

    Raises:
        UserError: There is no such config, or it cannot be read.
    """
    file = _in_own(path)
    module, packaged, _ = file.partition('::')
    if packaged and not (module.isidentifier() and importlib.util.find_spec(module)):
        raise UserError(f"Config '{path}' is of '{module}', which is not installed.")
    if packaged and module not in MODULE2PACKAGE:
        raise UserError(
            f"Config '{path}' is of '{module}', which is neither mmtr nor a library whose configs mmengine "
            f'finds by name ({", ".join(MODULE2PACKAGE)}): give the path of its file.'
        )
    if not packaged and not osp.isfile(file):
        where = f": mmtr has those of '{osp.join(MIM, 'configs')}'" if file != path else ''
        raise UserError(f"Config '{path}' is not there{where}.")
    try:
        return with_names(hub.get_config(path) if packaged else Config.fromfile(file))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"Config '{path}' is not there, or a base of it: {error}.") from error
    except Exception as error:  # a config is code, in which anything can go wrong
        raise UserError(f"Config '{path}' cannot be read: {type(error).__name__}: {error}.") from error


def read_reductions(path: str) -> dict[str, Optional[dict]]:
    """Read the dict ``reductions`` of a Python or YAML file: name -> value of the config key ``token_reduction``.

    Raises:
        UserError: There is no such file, or it has no dict ``reductions``.
    """
    try:
        return with_names(Config.fromfile(path)).reductions.to_dict()
    except (OSError, SyntaxError, AttributeError, ImportError) as error:
        raise UserError(
            f"'{path}' must be a Python or YAML file with reductions = dict(name=dict(type='TokenAdapter')): {error}"
        ) from error


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--cfg-options`` to a parser."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        default={},
        metavar='KEY=VALUE',
        help='settings that replace those of the config, e.g. model.backbone.drop_path_rate=0.1; '
        "values are Python's: 0.3, (0.3,0.2), \"[dict(type='X')]\"",
    )


def add_token_reduction(parser: argparse.ArgumentParser, what: str = '') -> None:
    """Add the option ``--token-reduction``, which ``read_config`` merges into the config, to a parser.

    Args:
        what: Verb before the help text.
    """
    parser.add_argument(
        '--token-reduction',
        nargs='+',
        action=TokenReduction,
        metavar=('NAME', 'KEY=VALUE'),
        help=f"{what} this method and its settings in place of the config's, e.g. TokenAdapter "
        'ratio=0.3; none takes it away',
    )


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merge settings, values by dotted keys as of ``--cfg-options``, into a config, in place.

    Raises:
        UserError: A setting does not fit the config.
    """
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"Settings {', '.join(options)} do not fit config '{cfg.filename}': {error}.") from error


def read_config(args: argparse.Namespace) -> Config:
    """Read the config ``args.config`` and merge ``args.cfg_options`` and ``args.token_reduction`` into it.

    Raises:
        UserError: The config cannot be read, or an option does not fit it.
    """
    cfg = load_config(args.config)
    merge_options(cfg, args.cfg_options)
    if getattr(args, 'token_reduction', None) is not None:
        merge_options(cfg, with_reduction(cfg, args.token_reduction))
    return cfg


def with_reduction(cfg: Config, reduction: dict) -> dict[str, Any]:
    """List the changes, values by dotted keys, that give a config a token reduction.

    A backbone of mmtr gets the key ``token_reduction``, any other model the hook ``mmtr.TokenReductionHook``.

    Args:
        reduction: ``dict(type=..., **settings)``; an empty dict removes the reduction.

    Raises:
        UserError: The config has no model with a backbone.
    """
    backbone = (cfg.get('model') or {}).get('backbone')
    if not backbone:
        raise UserError(f"Config '{cfg.filename}' has no model with a backbone whose tokens could be reduced.")
    own, changes = full_name(backbone.type).startswith('mmtr.'), {}
    if own and (reduction or 'token_reduction' in backbone):
        replaces = dict(_delete_=True) if reduction and 'token_reduction' in backbone else {}
        changes['model.backbone.token_reduction'] = {**replaces, **reduction} or None
    hooks = list(cfg.get('custom_hooks') or ())
    others = [hook for hook in hooks if not is_type(hook, 'mmtr.TokenReductionHook')]
    if reduction and not own:
        others.append(dict(type='mmtr.TokenReductionHook', token_reduction=reduction))
    if others != hooks:
        changes['custom_hooks'] = others
    return changes


def inherited(path: str, changes: dict[str, Any], folder: str) -> str:
    """Write, as text, a config that is the one of ``path`` with changes.

    The text inherits from ``path`` by ``_base_``. If ``path`` is in pure Python, the text holds the whole config: in
    mmengine only another pure-Python config could inherit from it.

    Args:
        changes: Values by dotted keys.
        folder: Folder in which the text will be stored; the path of the base is relative to it.

    Raises:
        UserError: The config cannot be read, or the changes do not fit it.
    """
    cfg = load_config(path)
    if is_pure(cfg):
        merge_options(cfg, changes)
        return cfg.pretty_text
    changed = Config()
    changed.merge_from_dict(changes)
    base = path if '::' in path else osp.relpath(path, Path(folder).resolve())
    return f'_base_ = {base!r}\n{changed.pretty_text}'


_find_own_configs()
for _module in ('mmseg', 'mmdet'):
    _find_by_import_name(_module)
