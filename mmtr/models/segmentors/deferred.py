"""Data of a sample that are computed when somebody reads them."""

from collections.abc import Mapping
from typing import Any, Callable, Optional

from mmengine.structures import PixelData
from torch import Tensor


class DeferredPixelData(PixelData):
    """``PixelData`` whose ``data`` is computed when it is first read; copied and pickled as a plain one.

    Args:
        compute: Gives ``data``, (C, H, W). None: ``data`` is set as in any ``PixelData``.
        kwargs: ``PixelData``'s.
    """

    def __init__(self, compute: Optional[Callable[[], Tensor]] = None, **kwargs):
        super().__init__(**kwargs)
        if compute is not None:
            self.__dict__['_compute'] = compute
            self._data_fields.add('data')

    def __getattr__(self, name):
        # Called only where nothing is found: until ``data`` is there.
        if name != 'data' or name not in self._data_fields:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        self.__dict__['data'] = self._compute()
        return self.__dict__['data']

    def __delattr__(self, name):
        getattr(self, name)
        super().__delattr__(name)

    __delitem__ = __delattr__

    def pop(self, *args) -> Any:
        """See ``BaseDataElement``."""
        self.get(args[0])
        return super().pop(*args)

    def to_dict(self) -> Mapping:
        """The fields, as stock; metrics of labels are given those of every sample, and read no logits."""
        return _Fields(self)

    def __reduce__(self):
        return _plain, (self.metainfo, dict(self.items()))


class _Fields(Mapping):
    """A mapping of an element's fields, read from it when they are asked for; pickled as a dict."""

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
