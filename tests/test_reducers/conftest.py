"""Which of the shared tests run every day."""

from pathlib import Path

import pytest

#: Hosts that the everyday run tries with all settings: one of each kind; the others with the defaults of each method.
FIRST = ('vit', 'eva02', 'swintransformer', 'mixvisiontransformer')


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave settings beside the type, in hosts that are not ``FIRST``, to the long run."""
    for item in items:
        given = item.callspec.params if hasattr(item, 'callspec') else {}
        cfg, host = given.get('cfg'), given.get('backbone', given.get('host'))
        here = Path(__file__).parent in item.path.parents
        if here and isinstance(cfg, dict) and len(cfg) > 1 and host is not None and host.__name__ not in FIRST:
            item.add_marker(pytest.mark.slow)
