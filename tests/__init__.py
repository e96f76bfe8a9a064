"""mmdet asks for panopticapi once, when it is imported, and PyPI does not have that."""

from .panopticapi_stand_in import install

install()
