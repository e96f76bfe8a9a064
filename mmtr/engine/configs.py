"""Reading configs, also those packaged with mmseg and mmdet ('mmseg::...'), under either OpenMMLab stack."""
import importlib.util
import os.path as osp
from importlib.metadata import PackageNotFoundError, version

from mmengine.config import Config
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
    """The dict ``reductions`` of a Python file: name -> value of the key ``token_reduction``.

    Raises:
        UserError: There is no such file, or no such dict in it.
    """
    try:
        return Config.fromfile(path).reductions.to_dict()
    except (OSError, SyntaxError, AttributeError) as error:
        raise UserError(f"'{path}' must be a Python file with reductions = dict(name=dict(type='TokenAdapter')): "
                        f'{error}') from error


for _module in ('mmseg', 'mmdet'):
    _find_by_import_name(_module)
