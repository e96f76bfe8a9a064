from .errors import UserError
from .version import __version__

__all__ = ['UserError', '__version__']
