"""Reading configs, also those packaged with mmseg and mmdet ('mmseg::...'), under either OpenMMLab stack."""
import importlib.util
import os.path as osp
from importlib.metadata import PackageNotFoundError, version

from mmengine.config import Config, DictAction
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config

from mmtr.errors import UserError


def _find_by_import_name(module):
    # mmengine looks a module up by the name of its distribution, which the maintained fork has changed;
    # for mmengine.hub, one that is not found is one to install.
    try:
        version(MODULE2PACKAGE[module])
    except PackageNotFoundError:
        MODULE2PACKAGE[module] = module


def load_config(path):
    """mmengine ``Config`` of a file, or of a packaged config named like 'mmseg::segmenter/<name>.py'.

    Raises:
        UserError: There is no such config, or it cannot be parsed.
    """
    module, packaged, _ = path.partition('::')
    if packaged and (module not in MODULE2PACKAGE or importlib.util.find_spec(module) is None):
        raise UserError(f"Config '{path}' is of '{module}', which is not installed.")
    if not packaged and not osp.isfile(path):
        raise UserError(f"Config '{path}' is not there.")
    try:
        return get_config(path) if packaged else Config.fromfile(path)
    except FileNotFoundError as error:
        raise UserError(f"Config '{path}' is not there, or a base of it: {error}.") from error
    except (OSError, SyntaxError) as error:
        raise UserError(f"Config '{path}' cannot be read: {error}.") from error


def read_reductions(path):
    """The dict ``reductions`` of a Python or YAML file: name -> value of the key ``token_reduction``.

    Raises:
        UserError: There is no such file, or no such dict in it.
    """
    try:
        return Config.fromfile(path).reductions.to_dict()
    except (OSError, SyntaxError, AttributeError) as error:
        raise UserError(f"'{path}' must be a Python or YAML file with reductions = "
                        f"dict(name=dict(type='TokenAdapter')): {error}") from error


class Options(DictAction):
    """An ``argparse`` action for KEY=VALUE ...; raises ``UserError`` for what is none."""

    def __call__(self, parser, namespace, values, option_string=None):
        """See ``argparse.Action``."""
        for option in values:
            name, equals, value = option.partition('=')
            if not (name and equals) or value.count('[') != value.count(']') or (
                    value.count('(') != value.count(')')):
                raise UserError(
                    f"Settings are given as key=value, and lists as key=[a,b] without spaces, not '{option}'.")
        super().__call__(parser, namespace, values, option_string)


def add_options(parser):
    """Give an ``argparse`` parser the option ``--cfg-options``."""
    parser.add_argument('--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE',
                        help='settings that replace those of the config, e.g. model.backbone.drop_path_rate=0.1')


def merge_options(cfg, options):
    """Merge settings, as ``--cfg-options`` gives them, into a config.

    Raises:
        UserError: They do not fit the config.
    """
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"Settings {', '.join(options)} do not fit config '{cfg.filename}': {error}.") from error


for _module in ('mmseg', 'mmdet'):
    _find_by_import_name(_module)
