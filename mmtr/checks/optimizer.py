"""A check of the settings of an optimizer against the parameters that it gets."""

from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmtr.words import some


def say_unused_keys(optim_wrapper: Any, model: nn.Module) -> None:
    """Log ``paramwise_cfg.custom_keys`` that are part of no parameter's name: mmengine passes over them in silence.

    It is no warning, since stock schedules have keys for several models.

    Args:
        optim_wrapper: Config of the optimizer's wrapper; nothing is checked if it is built already.
        model: The model to train.
    """
    settings = (optim_wrapper.get('paramwise_cfg') or {}) if isinstance(optim_wrapper, dict) else {}
    names = [name for name, _ in model.named_parameters()]
    unused = [repr(key) for key in settings.get('custom_keys') or () if not any(key in name for name in names)]
    if unused:
        print_log(
            f'optim_wrapper.paramwise_cfg.custom_keys: no parameter has {some(unused)} in its name, so that nothing '
            f'gets these settings; names are such as {names[0]}.',
            'current',
        )
