from mmtr.operators import stand_in
from mmtr.optional import settle_torchvision

# Before anything imports mmseg, which imports mmdet, which imports mmpretrain.
stand_in()
settle_torchvision()

from mmtr.apis import apply_peft, apply_token_reduction  # noqa: E402
from mmtr.errors import UserError  # noqa: E402
from mmtr.version import __version__  # noqa: E402

from . import engine  # noqa: E402, F401  puts safe loading of checkpoints in force

__all__ = ['UserError', '__version__', 'apply_peft', 'apply_token_reduction', 'init_model']


def __getattr__(name):
    # What it needs is not worth the wait for those who never call it.
    if name == 'init_model':
        from mmtr.inference.model import init_model

        return init_model
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
