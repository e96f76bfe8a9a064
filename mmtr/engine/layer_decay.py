"""Layer-wise learning rate decay for any backbone with layers; mmseg's version knows some backbones by name."""

import re
from typing import Any, Optional

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmtr.errors import UserError
from mmtr.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Builds an optimizer whose learning rate is multiplied by ``decay_rate`` for each layer towards the image.

    Heads and the backbone's last norm have the learning rate of the config. The last layer's is decayed once, the
    embedding's most often. Vectors (biases, norms), position table, class token and registers have no weight decay.

    Args:
        optim_wrapper_cfg: As in mmengine; the optimizer has an ``lr``.
        paramwise_cfg: ``dict(decay_rate=...)``.

    Raises:
        UserError: ``decay_rate`` is missing or no number above 0, up to 1; or the backbone has no ``layers``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None):
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('decay_rate')
        if self.paramwise_cfg.keys() != {'decay_rate'} or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise UserError(
                f'optim_wrapper.paramwise_cfg={dict(self.paramwise_cfg)} must be dict(decay_rate=...), '
                'with a number above 0, up to 1.'
            )
        self.decay_rate = rate

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: Any) -> None:
        """Append to ``params`` a group of trainable parameters for each learning rate and weight decay."""
        layers = getattr(getattr(module, 'backbone', None), 'layers', None)
        if layers is None:
            raise UserError('LayerDecayConstructor needs a model whose backbone has layers.')
        groups = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            below = len(layers) + 1 - self._depth(name, len(layers))
            decays = parameter.dim() > 1 and not name.endswith(('pos_embed', 'cls_token', 'register_tokens'))
            group = groups.setdefault((below, decays), dict(params=[], lr=self.base_lr * self.decay_rate**below))
            if not decays:
                group['weight_decay'] = 0.0
            group['params'].append(parameter)
        params.extend(groups.values())

    @staticmethod
    def _depth(name, depth):
        layer = re.match(r'backbone\.layers\.(\d+)\.', name)
        if layer:
            return int(layer[1]) + 1
        embedding = ('backbone.patch_embed', 'backbone.pos_embed', 'backbone.cls_token', 'backbone.register_tokens')
        return 0 if name.startswith(embedding) else depth + 1
