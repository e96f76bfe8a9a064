"""A config that heals a model, for ``tools/tune_reduction.py --heal``."""

import os
from typing import Any

from mmengine.config import Config

from mmtr.config.files import with_reduction
from mmtr.config.types import is_type
from mmtr.errors import UserError
from mmtr.reducers import BackboneInfo, build_token_reducer


def with_code(cfg: Config, reduction: dict, backbone: BackboneInfo) -> dict:
    """Return a reduction with ``restore='learned'`` if its method can have that and the config has a key for it.

    Args:
        cfg: Config of the plain model.
        reduction: Value of the key ``token_reduction``.
        backbone: Shape of the backbone.
    """
    learned = {**reduction, 'restore': 'learned'}
    # A hook would add the parameters after the optimizer is built.
    if not any(key.startswith('model.') for key in with_reduction(cfg, reduction)):
        return reduction
    try:
        build_token_reducer(learned, backbone)
    except UserError:  # the method merges nothing
        return reduction
    return learned


def healing_changes(cfg: Config, checkpoint: str, iterations: int, reduction: dict) -> dict[str, Any]:
    """List the changes, values by dotted keys, by which a config heals a model, without labels.

    The learning rate is a fifth of the config's, ten times as much for a learned code.

    Args:
        cfg: Config of the plain model.
        checkpoint: Its weights.
        iterations: Length of the training.
        reduction: Value of the key ``token_reduction``.

    Raises:
        UserError: The config has no training data, or no optimizer with a learning rate.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    rate = (wrapper.get('optimizer') or {}).get('lr')
    if not cfg.get('train_dataloader') or rate is None:
        raise UserError(
            f"--heal {iterations} trains, and config '{cfg.filename}' has no train_dataloader or no optim_wrapper."
            'optimizer.lr: give the config that the model was trained with.'
        )
    changes = with_reduction(cfg, reduction)
    warm_up = iterations // 10
    changes |= {
        'custom_hooks': [*changes.get('custom_hooks', cfg.get('custom_hooks') or ()), dict(type='mmtr.HealingHook')],
        'load_from': os.path.abspath(checkpoint),
        'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations),
        'optim_wrapper.optimizer.lr': rate / 5,
        'param_scheduler': [
            *[dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up)] * bool(warm_up),
            dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=warm_up, end=iterations),
        ],
        'default_hooks.checkpoint': dict(_delete_=True, type='CheckpointHook', by_epoch=False, interval=iterations),
        'default_hooks.logger': dict(_delete_=True, type='LoggerHook', interval=50, log_metric_by_epoch=False),
        'log_processor': dict(by_epoch=False),
    }
    if reduction.get('restore') == 'learned' and is_type(
        wrapper.get('constructor', 'DefaultOptimWrapperConstructor'), 'mmengine.DefaultOptimWrapperConstructor'
    ):
        changes['optim_wrapper.paramwise_cfg.custom_keys.token_reducer'] = dict(lr_mult=10.0)
    return changes
