"""The rooms of docs/architecture.md: who may import whom, and how large a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: From the bottom up: a room imports from those before it alone. docs/architecture.md says what lives in each.
ROOMS = (
    *('version', 'errors', 'optional', 'registry', 'words', 'files', 'config', 'operators', 'settings', 'declared'),
    *('ops', 'undo', 'tokens', 'reducers', 'peft', 'weights', 'converters', 'models', 'apis', 'datasets', 'evaluation'),
    *('checks', 'analysis', 'visualization', 'engine', 'inference', 'export', 'reports', 'cli'),
)
MODULES = sorted((ROOT / 'mmtr').rglob('*.py'))
LONGEST = 300


def room_of(module):
    return module.split('.')[1] if module.startswith('mmtr.') else ''


def imports(path):
    """(module, name) of each import of mmtr's own in a file."""
    package = path.relative_to(ROOT).with_suffix('').parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = '.'.join((*package[: len(package) - node.level + 1], *([node.module] if node.module else ())))
            base = base if node.level else node.module
            yield from ((base, alias.name) for alias in node.names if base.partition('.')[0] == 'mmtr')
        elif isinstance(node, ast.Import):
            yield from ((alias.name, '') for alias in node.names if alias.name.partition('.')[0] == 'mmtr')


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_imported_from_a_room_above(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    if len(parts) == 2 and parts[1] in ('__init__', '__main__'):
        return  # the doors
    for module, name in imports(path):
        room = room_of(module) or name
        assert room in ROOMS, f'{module} is in no room'
        assert ROOMS.index(room) <= ROOMS.index(parts[1]), f'{parts[1]} imports {module}.{name}'
        private = any(part.startswith('_') and not part.startswith('__') for part in (*module.split('.'), name))
        assert not private or module.split('.')[:-1] == list(parts[:-1]), f'{module}.{name} is private'


def test_every_room_is_described():
    page = (ROOT / 'docs/architecture.md').read_text()
    assert [room for room in ROOMS if f'`mmtr/{room}' not in page] == []


@pytest.mark.parametrize('folder', ['mmtr', 'tools', 'docs', 'demo', 'experiments', 'tests'])
def test_files_can_be_read_at_one_sitting(folder):
    assert {
        str(path): n for path in (ROOT / folder).rglob('*.py') if (n := len(path.read_text().split('\n')) - 1) > LONGEST
    } == {}
