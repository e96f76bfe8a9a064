"""What tests of MaskDINO and other models of mmdet need."""

import pytest
from mmdet.utils import register_all_modules

from tests.drawn_coco import draw_coco


@pytest.fixture
def scope_of_mmdet():
    """mmdet's registries are the ones that configs mean."""
    register_all_modules()


@pytest.fixture
def coco(tmp_path):
    """Folder of a drawn COCO set."""
    return draw_coco(tmp_path / 'coco')
