"""What a registry says of a config that it cannot build, as a sentence that names the key."""

import inspect
import re
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
def in_words_of(cfg):
    """Context in which a setting that a class of a registry has not, lacks or is itself unknown is a ``UserError``.

    Any other error, and one that is not of the config's words, stays what it is, with its traceback.

    Args:
        cfg: mmengine ``Config`` that is built inside.
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
    """The names of the arguments of a class or function, and whether it takes any other."""
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
    # A constructor that forgets an argument of something else is a fault of the code. Python 3.9 names no owner.
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
        registry = registry.parent
    hint = nearest(name, known)
    if not cfg.get('default_scope') and not scope:
        hint = "; the config has no default_scope, such as 'mmseg' or 'mmdet'."
    elif hint == '.':
        hint = '; a class of your own is registered, and imported by custom_imports=dict(imports=[...]).'
    return f'{path}.type={kind!r} is unknown in {built["registry"].scope}{hint}'


def _path(cfg, built, *keys):
    """Where in ``cfg`` the dict is that was built, whose values may have changed on the way: ``a.b.0``."""
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
    """The other type that a file of the config has at ``path`` together with the setting ``name``, or None."""
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
    """The config of a file as it is without options, and of each file that it inherits from."""
    try:
        yield Config.fromfile(filename)
        for base in Config._get_base_files(filename):
            yield from _files(Config._get_cfg_path(base, filename)[0])
    except (OSError, SyntaxError, AttributeError, KeyError):  # not of a file of this kind
        return
