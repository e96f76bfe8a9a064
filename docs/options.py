"""Writes what the declarations of settings say into the option tables of token_reduction.md and peft.md.

``python docs/options.py``: names, defaults and what is allowed come from the code, the last column stays.
"""

import inspect
import re
from pathlib import Path

from mmtr.declared import declarations
from mmtr.registry import PEFTS, TOKEN_REDUCERS

PAGES = {'token_reduction.md': TOKEN_REDUCERS, 'peft.md': PEFTS}
HEAD = '| option | default | allowed | what it is |\n|---|---|---|---|\n'
#: A section of a method and the table in it.
TABLE = re.compile(r'(?<=^## )(\w+)\n((?:(?!## |\|).*\n)*)\| option \|.*\n\|---.*\n((?:\|.*\n)*)', re.MULTILINE)


def written(text: str, registry) -> str:
    """``text`` of a page with tables as the methods in ``registry`` declare their settings."""
    registry.import_from_location()

    def table(found):
        name, between, rows = found.groups()
        kind = registry.get(name)
        prose = {row.split('`')[1]: row.strip('|\n ').split(' | ')[-1] for row in rows.splitlines()}
        declared = declarations(kind)
        lines = [
            f'| `{key}` | `{parameter.default!r}` | {declared[key].words()} | {prose.get(key, "")} |\n'
            for key, parameter in inspect.signature(kind).parameters.items()
            if key != 'backbone'
        ]
        return f'{name}\n{between}{HEAD}{"".join(lines)}'

    return TABLE.sub(table, text)


if __name__ == '__main__':
    for name, registry in PAGES.items():
        path = Path(__file__).with_name(name)
        path.write_text(written(path.read_text(encoding='utf-8'), registry), encoding='utf-8')
