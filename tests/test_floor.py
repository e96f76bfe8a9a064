"""What our code uses of torch is in the oldest torch that we run with.

``python -m tests.test_floor`` in an environment with that torch writes ``torch_floor.txt``: the names that everybody
uses, and of the others that our code uses those that are there.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FLOOR = '2.1'
KNOWN = Path(__file__).with_name('torch_floor.txt')
# Where the names of everybody are.
COMMON = {'torch.': torch, 'torch.nn.': torch.nn, 'torch.nn.functional.': torch.nn.functional, '.': torch.Tensor}
# Attributes of a tensor in later releases that are attributes of something else in our code.
OURS = {'.index', 'torch.ops.torchvision'}
# Names of later releases, with the file where the code around them asks for the release first.
LATER = {
    'torch.compiler.is_compiling': 'mmtr/models/segmentors/encoder_decoder.py',
    'torch.serialization.add_safe_globals': 'mmtr/weights/safe_load.py',
    'torch.nn.attention.SDPBackend': 'mmtr/export/onnx.py',
    'torch.nn.attention.SDPBackend.MATH': 'mmtr/export/onnx.py',
    'torch.nn.attention.sdpa_kernel': 'mmtr/export/onnx.py',
    'torch.export.Dim': 'mmtr/export/onnx.py',
    **{
        f'torch.onnx.export({name}=)': 'mmtr/export/onnx.py'
        for name in ('dynamo', 'dynamic_shapes', 'optimize', 'custom_translation_table')
    },
}


def uses(tree):
    """Names of a parsed file with their lines.

    'torch.a.b' and 'torch.a.b(keyword=)' of what is reached from an import of torch, and '.attribute' of anything else.
    """
    names, found = {}, []

    def path(node):
        if isinstance(node, ast.Name):
            return names.get(node.id)
        above = isinstance(node, ast.Attribute) and path(node.value)
        return f'{above}.{node.attr}' if above else None

    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(
                {
                    each.asname or 'torch': each.name if each.asname else 'torch'
                    for each in node.names
                    if each.name.split('.')[0] == 'torch'
                }
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'torch':
            names.update({each.asname or each.name: f'{node.module}.{each.name}' for each in node.names})
            found += [(f'{node.module}.{each.name}', node.lineno) for each in node.names]
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            name = path(node)
            if name is None and not node.attr.startswith('__'):
                found.append((f'.{node.attr}', node.lineno))
            elif name and id(node) not in inner:
                found.append((name, node.lineno))
        elif isinstance(node, ast.Call) and path(node.func):
            found += [(f'{path(node.func)}({each.arg}=)', node.lineno) for each in node.keywords if each.arg]
    return found


def used():
    """Every use in our code: name, file and line."""
    return [
        (name, file.relative_to(ROOT).as_posix(), line)
        for folder in ('mmtr', 'tools', 'demo', 'tests')
        for file in sorted((ROOT / folder).rglob('*.py'))
        for name, line in uses(ast.parse(file.read_text(encoding='utf-8')))
    ]


def there(name):
    """Whether the installed torch has it. A keyword of a function in C counts when its documentation names it."""
    if name.startswith('.'):
        return hasattr(torch.Tensor, name[1:]) or hasattr(torch.nn.Module, name[1:])
    name, _, keyword = name.rstrip('=)').partition('(')
    parts = name.split('.')
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module('.'.join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            value = getattr(value, part, None)
        break
    if value is None or not keyword:
        return value is not None
    try:
        parameters = inspect.signature(value).parameters
    except ValueError:
        return re.search(rf'\b{keyword}\b', value.__doc__) is not None
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def unknown(found, known):
    """Of uses, those of names that are neither known nor guarded in their file; attributes only if torch has them."""
    return [
        f'{name} ({file}:{line})'
        for name, file, line in found
        if name not in known | OURS and LATER.get(name) != file and (there(name) or not name.startswith('.'))
    ]


@pytest.mark.slow
def test_our_code_uses_nothing_newer_than_the_oldest_torch():
    missing = unknown(used(), set(KNOWN.read_text().split('\n')))
    assert not missing, (
        f'Not known to be in torch {FLOOR}: {", ".join(missing)}. Run `python -m tests.test_floor` in an environment '
        f'with that torch (docs/get_started.md), which adds to {KNOWN.name} what is there. If it is not there, use '
        'something else, or ask for the release in the code and name it in LATER; if it is no name of torch, in OURS.'
    )


@pytest.mark.parametrize(
    'code, name',
    [
        ('import torch\ntorch.a.b()', 'torch.a.b'),
        ('from torch.a import b', 'torch.a.b'),
        ('import torch.a as c\nc.b', 'torch.a.b'),
        ('from torch import a\na.b(1, c=2)', 'torch.a.b(c=)'),
        ('import torch.a.d\ntorch.a.b', 'torch.a.b'),
        ('x.relu_()', '.relu_'),
        ('x().relu_', '.relu_'),
    ],
)
def test_a_new_name_is_found(code, name):
    assert f'{name} (f.py:{code.count(chr(10)) + 1})' in unknown(
        [(each, 'f.py', line) for each, line in uses(ast.parse(code))], {'torch.a'}
    )


@pytest.mark.parametrize(
    'name, is_there',
    [
        ('torch.nn.functional.relu', True),
        ('torch.nn.functional.nothing', False),
        ('torch.load(weights_only=)', True),
        ('torch.save(nothing=)', False),
        ('torch.sum(keepdim=)', True),
        ('torch.sum(nothing=)', False),
        ('torch.nn.Linear(bias=)', True),
        ('torch.nn.Linear(nothing=)', False),
        ('.sum', True),
        ('.nothing', False),
    ],
)
def test_what_torch_has_is_known(name, is_there):
    assert there(name) is is_there


if __name__ == '__main__':
    if not torch.__version__.startswith(FLOOR + '.'):
        raise SystemExit(f'This is torch {torch.__version__}: the names are those of torch {FLOOR}.')
    names = {name for name, *_ in used() if there(name)}
    names |= {f'{prefix}{name}' for prefix, space in COMMON.items() for name in dir(space) if name[0] != '_'}
    KNOWN.write_text('\n'.join(sorted(names)) + '\n')
    print(f'Wrote {KNOWN}')
