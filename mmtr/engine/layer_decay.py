"""Layer-wise learning rate decay for any backbone with layers; mmseg's version knows some backbones by name."""

import re
from typing import Any, Optional

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmtr.errors import UserError
from mmtr.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmtr.settings import Flag, Number, Whole

SETTINGS = dict(decay_rate=Number(above=0, most=1), num_full_layers=Whole(0, 1024), decay_vectors=Flag())


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Builds an optimizer whose learning rate is multiplied by ``decay_rate`` for each layer towards the image.

    Heads, the backbone's last norm, and what ``token_reduction`` and ``peft`` add have the learning rate of the config.
    There are two ways to count. In BEiT's, the default, layer i of L is decayed L - i times, the last one once, and the
    embedding L + 1 times. In EoMT's, with ``num_full_layers``, layer i is decayed L - 1 - i times, the last
    ``num_full_layers`` are not decayed, and the embedding (patches, positions, class token, registers) is decayed like
    layer 0. Each group of parameters notes whether it is ``in_backbone``, for ``TwoStagePolyLR``.

    Args:
        optim_wrapper_cfg: As in mmengine; the optimizer has an ``lr``.
        paramwise_cfg: ``dict(decay_rate=..., num_full_layers=0, decay_vectors=False)``. ``decay_vectors``: vectors
            (biases, norms), position table, class token and registers have weight decay too, as in EoMT.

    Raises:
        UserError: A setting is missing or cannot work, or the backbone has no ``layers`` or fewer than
            ``num_full_layers``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None):
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        unknown = self.paramwise_cfg.keys() - SETTINGS.keys()
        if unknown or 'decay_rate' not in self.paramwise_cfg:
            raise UserError(
                f'optim_wrapper.paramwise_cfg={dict(self.paramwise_cfg)} must be dict(decay_rate=...), '
                f'with {" or ".join(SETTINGS)} and nothing else.'
            )
        given = {'num_full_layers': 0, 'decay_vectors': False, **self.paramwise_cfg}
        for name, setting in SETTINGS.items():
            setattr(self, name, setting.check(f'optim_wrapper.paramwise_cfg.{name}', given[name]))

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: Any) -> None:
        """Append to ``params`` a group of trainable parameters for each learning rate and weight decay."""
        layers = getattr(getattr(module, 'backbone', None), 'layers', None)
        if layers is None:
            raise UserError('LayerDecayConstructor needs a model whose backbone has layers.')
        if self.num_full_layers > len(layers):
            raise UserError(
                f'optim_wrapper.paramwise_cfg.num_full_layers={self.num_full_layers} must be at most the {len(layers)} '
                'layers of the backbone.'
            )
        new_parts = getattr(module.backbone, 'trained_parts', ())
        groups = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            root, _, rest = name.partition('.')
            inside = root == 'backbone' and rest.partition('.')[0] not in new_parts
            below = self._below(name, len(layers))
            vector = parameter.dim() <= 1 or name.endswith(('pos_embed', 'cls_token', 'register_tokens'))
            decays = self.decay_vectors or not vector
            group = groups.setdefault(
                (below, decays, inside), dict(params=[], lr=self.base_lr * self.decay_rate**below, in_backbone=inside)
            )
            if not decays:
                group['weight_decay'] = 0.0
            group['params'].append(parameter)
        params.extend(groups.values())

    def _below(self, name, depth):
        """How many times the learning rate of a parameter is decayed."""
        full = self.num_full_layers
        layer = re.match(r'backbone\.layers\.(\d+)\.', name)
        if layer:
            index = int(layer[1])
            return depth - index if not full else 0 if index >= depth - full else depth - 1 - index
        embedding = ('backbone.patch_embed', 'backbone.pos_embed', 'backbone.cls_token', 'backbone.register_tokens')
        return 0 if not name.startswith(embedding) else depth - 1 if full else depth + 1
