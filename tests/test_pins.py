"""Every install step keeps the stack's pins, and what is tested is what they say."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
STACKS = {path.name.removesuffix('-pins.txt'): path for path in (ROOT / 'requirements').glob('*-pins.txt')}
# Packages that ask for others, which pip may then move; these alone ask for none or leave all others as they are.
HARMLESS = {'detail', 'seaborn', 'cityscapesscripts', 'tensorboard', 'xformers', 'openmim', 'wheel', 'setuptools'}


def requirements(path):
    """Lines of a requirements file, those of the files that it names included."""
    for line in path.read_text().splitlines():
        line = line.partition('#')[0].strip()
        if line.startswith('-r '):
            yield from requirements(path.parent / line.removeprefix('-r ').strip())
        elif line:
            yield line


def test_the_environment_under_test_is_the_one_that_is_pinned():
    installed = {
        name.lower(): version
        for name, version in ((each.metadata['Name'], each.version) for each in importlib.metadata.distributions())
    }
    stack = 'onedl' if 'onedl-mmengine' in installed else 'openmmlab'
    for line in requirements(STACKS[stack]):
        pin = Requirement(line)
        version = installed[pin.name.lower()]
        assert pin.specifier.contains(version, prereleases=True), f'{pin}, but {version} is installed'


def pip_lines():
    for line in (ROOT / 'Makefile').read_text().replace('\\\n', '').splitlines():
        yield from (('Makefile', call) for call in re.findall(r'\$\(PIP\)[^&]*', line))
    for page in [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]:
        for line in page.read_text().splitlines():
            yield from ((page.name, call) for call in re.findall(r'pip install[^`&]*', line))


@pytest.mark.parametrize('where, call', [each for each in pip_lines() if each[0] != 'benchmarks.md'])
def test_no_install_step_can_move_a_pin(where, call):
    call = call.partition(' #')[0]
    # $@, $(STACK) and the like are of make.
    files = re.findall(r'-r (\S+)', call.replace('$(PINS)', '-r requirements/$(STACK)-pins.txt'))
    files = [ROOT / name.replace('$(STACK)', 'openmmlab') for name in files]
    if '--no-deps' in call or 'build.txt' in call or '--no-build-isolation -e .' in call or '.whl' in call:
        return  # the build tools come first; our own package asks for what is there
    if '--target' in call:
        return  # a folder of its own, which is not in the environment
    named = set(re.findall(r'(?<=\s)["\']?([a-z]\w+)(?=["\'=<> ]|$)', call.partition('install')[2])) - HARMLESS
    if not files and not named:
        return
    pinned = {Requirement(line).name for path in files for line in requirements(path)}
    assert 'numpy' in pinned or 'numpy<2' in call, call
