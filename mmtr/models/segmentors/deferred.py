"""Data of a sample that are computed when they are first read."""

from collections.abc import Mapping
from typing import Any, Callable, Optional

from mmengine.structures import PixelData
from torch import Tensor


class DeferredPixelData(PixelData):
    """``PixelData`` whose ``data`` is computed when it is first read; it is copied and pickled as ``PixelData``.

    Args:
        compute: Function that returns ``data``, (C, H, W); None: ``data`` is set as in ``PixelData``.
        kwargs: ``PixelData``'s.
    """

    def __init__(self, compute: Optional[Callable[[], Tensor]] = None, **kwargs):
        super().__init__(**kwargs)
        if compute is not None:
            self.__dict__['_compute'] = compute
            self._data_fields.add('data')

    def __getattr__(self, name):
        # Called for missing attributes only: until ``data`` is computed.
        if name != 'data' or name not in self._data_fields:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        self.__dict__['data'] = self._compute()
        return self.__dict__['data']

    def __delattr__(self, name):
        getattr(self, name)
        super().__delattr__(name)

    __delitem__ = __delattr__

    def pop(self, *args) -> Any:
        """Remove a field and return its value, as ``BaseDataElement.pop``."""
        self.get(args[0])
        return super().pop(*args)

    def to_dict(self) -> Mapping:
        """Return the fields as a mapping that computes ``data`` when it is read; metrics of labels do not read it."""
        return _Fields(self)

    def __reduce__(self):
        return _plain, (self.metainfo, dict(self.items()))


class _Fields(Mapping):
    """A mapping of the fields of an element, each read when it is accessed; it is pickled as a dict."""

    def __init__(self, element):
        self._element = element

    def __getitem__(self, key):
        if key not in self._element:
            raise KeyError(key)
        return getattr(self._element, key)

    def __iter__(self):
        return iter(self._element.all_keys())

    def __len__(self):
        return len(self._element.all_keys())

    def __reduce__(self):
        return dict, (dict(self),)


def _plain(metainfo, data):
    return PixelData(metainfo=metainfo, **data)
