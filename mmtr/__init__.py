from . import engine  # noqa: F401  puts safe loading of checkpoints in force
from .apis import apply_token_reduction
from .errors import UserError
from .version import __version__

__all__ = ['UserError', '__version__', 'apply_token_reduction']
