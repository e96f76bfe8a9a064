"""Turn the errors of a registry that cannot build a config into sentences that name the key of the config."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.registry.build_functions import build_from_cfg

from mmtr.checks.model_config import type_of
from mmtr.errors import UserError
from mmtr.words import some

from .config import nearest

_UNEXPECTED = re.compile(r"got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r'(?:(\w+)\.)?\w+\(\) missing \d+ required (?:positional|keyword-only) arguments?: (.+)')


@contextmanager
def in_words_of(cfg: Config) -> Iterator[None]:
    """Context in which registries build ``cfg``, and report its faulty settings as a ``UserError``.

    Any other error, and one that the config did not cause, is raised as it is, with its traceback.

    Args:
        cfg: The config that is built in the context.

    Raises:
        UserError: A type is unknown, or a class gets a setting that it does not have or misses one that it needs.
    """
    try:
        yield
    except (TypeError, KeyError) as error:
        said = _said(error, cfg)
        if said is None:
            raise
        raise UserError(said) from error


def _said(error, cfg):
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    builds = [i for i, frame in enumerate(frames) if frame.f_code is build_from_cfg.__code__]
    if not builds:
        return None
    after, built = frames[builds[-1] + 1 :], frames[builds[-1]].f_locals
    if isinstance(error, KeyError):
        return None if after or 'obj_cls' not in built or built['obj_cls'] is not None else _unknown(cfg, built)
    if 'obj_cls' not in built:
        return None
    unexpected, missing = _UNEXPECTED.search(str(error)), _MISSING.search(str(error))
    if unexpected:
        return _unexpected(cfg, built, unexpected[1])
    return _missing(cfg, built, missing[1], re.findall(r"'(\w+)'", missing[2])) if missing else None


def _settings(kind):
    """The arguments of a class or function by name, and whether it takes any others by ``**kwargs``."""
    if not inspect.isclass(kind):
        kinds = [kind]
    else:
        kinds = [vars(base)['__init__'] for base in kind.__mro__ if '__init__' in vars(base) and base is not object]
    names = {}
    for each in kinds:
        parameters = inspect.signature(each).parameters.values()
        names.update(
            {p.name: p for p in parameters if p.name != 'self' and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        )
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names, False
    return names, True


def _unexpected(cfg, built, name):
    given, (known, open_ended) = built['cfg'], _settings(built['obj_cls'])
    if name not in given or name in known:
        return None
    path, kind = _path(cfg, given, name), type_of(given)
    names = [name] if open_ended else [key for key in given if key not in known and key not in ('type', '_scope_')]
    listed = ' and '.join(map(repr, names))
    if name == '_delete_':
        return f'{path} has _delete_={given[name]}, but no base config has anything there to delete: leave it out.'
    before = _type_in_base(cfg, path, name)
    if before:
        return (
            f'{path} of type {kind} has no setting {listed}; the base config has it for type {before}: write '
            f'_delete_=True into {path}, so that nothing is inherited.'
        )
    hint = nearest(name, known)
    hint = f'; it has {some(sorted(known), 12)}.' if hint == '.' else hint
    return f'{path} of type {kind} has no setting {listed}{hint}'


def _missing(cfg, built, owner, names):
    # If a constructor leaves out an argument in a call of its own, the code is at fault, not the config. The message
    # names the owner of the function from Python 3.10 on.
    owners = {base.__name__ for base in inspect.getmro(built['obj_cls'])} if inspect.isclass(built['obj_cls']) else ()
    if (owner and owner not in owners) or not set(names) <= set(_settings(built['obj_cls'])[0]):
        return None
    path = _path(cfg, built['cfg'])
    return f'{path} of type {type_of(built["cfg"])} needs {" and ".join(names)}, which is not given.'


def _unknown(cfg, built):
    registry, kind = built['registry'], built['obj_type']
    path, scope, name = _path(cfg, built['cfg']), *kind.rpartition('.')[::2]
    known = set()
    while registry is not None:
        known |= set(registry.module_dict)
        root, registry = registry, registry.parent
    hint, elsewhere = nearest(name, known), [other for other, each in root.children.items() if name in each.module_dict]
    if not cfg.get('default_scope') and not scope:
        hint = "; the config has no default_scope, such as 'mmseg' or 'mmdet'."
    elif elsewhere:
        hint = f"; {elsewhere[0]} has one: type='{elsewhere[0]}.{name}'."
    elif hint == '.':
        hint = '; a class of your own is registered, and imported by custom_imports=dict(imports=[...]).'
    return f'{path}.type={kind!r} is unknown in {built["registry"].scope}{hint}'


def _path(cfg, built, *keys):
    """Path, such as ``a.b.0``, of the dict in ``cfg`` that was built; its values may have changed on the way."""
    found = [
        path for path, node in _dicts(cfg) if node.get('type') == built.get('type') and all(key in node for key in keys)
    ]
    same = [path for path, node in _dicts(cfg) if path in found and dict(node) == dict(built)]
    return (same or found or [f'The config of a {type_of(built)}'])[0]


def _dicts(node, path=''):
    items = node.items() if isinstance(node, (dict, Config)) else enumerate(node)
    for key, value in items:
        below = f'{path}.{key}' if path else str(key)
        if isinstance(value, dict):
            yield below, value
        if isinstance(value, (dict, list, tuple)):
            yield from _dicts(value, below)


def _type_in_base(cfg, path, name):
    """The type at ``path`` in a base config that has the setting ``name`` there, if it is another type; or None."""
    for base in _files(cfg.filename) if cfg.filename else ():
        node = base
        for key in path.split('.'):
            node = node.get(key) if isinstance(node, (dict, Config)) else None
        if isinstance(node, dict) and name in node and type_of(node) != type_of(_at(cfg, path)):
            return type_of(node)
    return None


def _at(cfg, path):
    for key in path.split('.'):
        cfg = cfg[int(key)] if isinstance(cfg, (list, tuple)) else cfg[key]
    return cfg


def _files(filename):
    """The config of a file without command-line options, and that of each file that it inherits from."""
    try:
        yield Config.fromfile(filename)
        for base in Config._get_base_files(filename):
            yield from _files(Config._get_cfg_path(base, filename)[0])
    except (OSError, SyntaxError, AttributeError, KeyError):  # the file cannot be read this way
        return
