"""Which tests of the contract run every day."""

import pytest

FIRST = ('vit', 'swintransformer')


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by their marks
def pytest_collection_modifyitems(items):
    """Every method runs in every host, and all of its settings in the first; ``settings`` are those in the others."""
    for item in items:
        params = item.callspec.params if hasattr(item, 'callspec') and 'test_contract' in item.path.name else {}
        host = params.get('backbone') or params.get('host')
        if host and host.__name__ not in FIRST and len(params.get('cfg') or ()) > 1:
            item.add_marker('settings')
            item.add_marker('slow')
