"""Tests on mmpretrain, where it is installed; tests/test_mmpretrain.py runs them in an environment that has it."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec('mmpretrain') else ['test_*.py']
