"""Token reduction for vision transformers in OpenMMLab models."""

from mmtr.operators import stand_in
from mmtr.optional import settle_torchvision

# Before anything imports mmseg, which imports mmdet, which imports mmpretrain.
stand_in()
settle_torchvision()

from mmtr.apis import apply_peft, apply_token_reduction  # noqa: E402
from mmtr.errors import UserError  # noqa: E402
from mmtr.version import __version__  # noqa: E402

from . import engine  # noqa: E402, F401  makes mmengine read checkpoints as data only

__all__ = ['UserError', '__version__', 'apply_peft', 'apply_token_reduction', 'init_model']


def __getattr__(name):
    # Imported on first use: the inferencers that it imports take long to load.
    if name == 'init_model':
        from mmtr.inference.model import init_model

        return init_model
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
