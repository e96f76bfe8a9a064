"""What can be told of the site without building it; `make docs` builds it, and takes warnings for errors."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / 'docs').glob('*.md'))


def pages_in(nav):
    """All files that a nav names, from left to right."""
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from [value] if isinstance(value, str) else pages_in(value)


NAV = list(pages_in(yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['nav']))


def test_every_page_is_in_the_nav_once():
    assert not [page for page, times in Counter(NAV).items() if times > 1]
    # The home page is README.md, and the reference is made of docstrings.
    pages = {page for page in NAV if not page.startswith('api/')} - {'index.md'}
    of_root = {page for page in pages if (ROOT / page).is_file()}
    assert pages - of_root == {page.name for page in PAGES}, 'name new pages in the nav of mkdocs.yml'


def test_every_package_that_exports_something_is_in_the_reference():
    reference = {page[len('api/') : -len('.md')] for page in NAV if page.startswith('api/')}
    packages = {
        '.'.join(init.parent.relative_to(ROOT).parts)
        for init in ROOT.glob('mmtr/**/__init__.py')
        if '__all__' in init.read_text()
    }
    # mmtr.models exports its packages alone.
    assert packages - {'mmtr.models'} <= reference, 'name new packages in the nav of mkdocs.yml'
    for module in reference:
        path = ROOT / module.replace('.', '/')
        assert path.is_dir() or path.with_suffix('.py').is_file(), module


@pytest.mark.parametrize('page', [ROOT / 'README.md', *PAGES], ids=lambda page: page.name)
def test_code_in_lists_is_indented_by_four(page):
    # A code host takes two to four spaces, MkDocs four alone.
    for fence in re.findall(r'^ +```', page.read_text(), re.MULTILINE):
        assert fence == '    ```'


@pytest.mark.parametrize('page', [ROOT / 'README.md', *PAGES], ids=lambda page: page.name)
def test_links_elsewhere_look_like_addresses(page):
    # Where they lead cannot be told without a network; of all others `make docs` tells it, anchors included.
    for address in re.findall(r'\]\((\w+:[^)]*)\)', page.read_text()):
        assert re.fullmatch(r'https?://[\w-]+(\.[\w-]+)+(/\S*)?', address), address
