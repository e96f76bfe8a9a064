"""Reading configs, also those packaged with mmtr, mmseg and mmdet ('mmtr::...'), under either OpenMMLab stack."""
import importlib.util
import os.path as osp
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mmengine import hub
from mmengine.config import Config, DictAction
from mmengine.config.utils import MODULE2PACKAGE

from mmtr.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries configs and tools where every OpenMMLab package has them; in a checkout they lie beside the package.
MIM = PACKAGE / '.mim' if (PACKAGE / '.mim').is_dir() else PACKAGE.parent
OWN = 'mmtr::'


def _in_own(path):
    """The file of 'mmtr::<name>.py'; any other path as it is."""
    return osp.join(MIM, 'configs', path[len(OWN):]) if str(path).startswith(OWN) else path


def _find_own_configs():
    # mmengine's own lookup knows a fixed list of packages, wants a folder before the name, and finds no editable
    # install of today's pip. A config of ours is as if given by the path of its file: it has no scope either.
    get_base, get_config = Config._get_cfg_path, hub.get_config

    def _get_cfg_path(cfg_path, filename):
        return (_in_own(cfg_path), None) if cfg_path.startswith(OWN) else get_base(cfg_path, filename)

    def get_own_config(cfg_path, pretrained=False):
        """See ``mmengine.hub.get_config``."""
        if not cfg_path.startswith(OWN):
            return get_config(cfg_path, pretrained)
        if pretrained:
            raise UserError(f"pretrained=True, but no weights of '{cfg_path}' are published: use pretrained=False.")
        return Config.fromfile(_in_own(cfg_path))

    Config._get_cfg_path = staticmethod(_get_cfg_path)
    hub.get_config = hub.hub.get_config = get_own_config


def _find_by_import_name(module):
    # mmengine looks a module up by the name of its distribution, which the maintained fork has changed;
    # for mmengine.hub, one that is not found is one to install.
    try:
        version(MODULE2PACKAGE[module])
    except PackageNotFoundError:
        MODULE2PACKAGE[module] = module


def load_config(path):
    """mmengine ``Config`` of a file, or of a packaged one like 'mmtr::<name>.py' or 'mmseg::segmenter/<name>.py'.

    Raises:
        UserError: There is no such config, or it cannot be parsed.
    """
    file = _in_own(path)
    module, packaged, _ = file.partition('::')
    if packaged and (module not in MODULE2PACKAGE or importlib.util.find_spec(module) is None):
        raise UserError(f"Config '{path}' is of '{module}', which is not installed.")
    if not packaged and not osp.isfile(file):
        where = f": mmtr has those of '{osp.join(MIM, 'configs')}'" if file != path else ''
        raise UserError(f"Config '{path}' is not there{where}.")
    try:
        return hub.get_config(path) if packaged else Config.fromfile(file)
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
        return Config.fromfile(_in_own(path)).reductions.to_dict()
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


_find_own_configs()
for _module in ('mmseg', 'mmdet'):
    _find_by_import_name(_module)
