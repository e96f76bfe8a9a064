"""A hook that adds token reduction to an unmodified config.

Once this module is imported, the hook also acts on models that are built without a runner.
"""

from typing import Optional

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmtr.apis import apply_token_reduction
from mmtr.config.types import is_type, type_name
from mmtr.errors import UserError
from mmtr.reducers import TokenReducer
from mmtr.registry import HOOKS


@HOOKS.register_module()
class TokenReductionHook(Hook):
    """Reduces tokens in the model of any config that lists this hook in ``custom_hooks``.

    A runner calls it before it trains or tests. Without a runner it acts, once mmtr is imported, when ``model.cfg`` is
    set, as the ``init_model``, ``init_detector`` and inferencers of OpenMMLab do.

    Args:
        token_reduction: ``dict(type=..., **settings)``.
        attn_backend: ``auto | sdpa | xformers | math``.

    Raises:
        UserError: See ``apply_token_reduction``; or the method has parameters, and would add them after the optimizer
            was built or after weights may have been loaded.
    """

    priority = 'VERY_HIGH'

    def __init__(self, token_reduction: Optional[dict], attn_backend: str = 'auto'):
        self.token_reduction, self.attn_backend = token_reduction, attn_backend

    def before_run(self, runner: Runner) -> None:
        """Put the reducer into the model, before weights are loaded."""
        if self.put_into(runner.model) and runner._train_loop is not None:
            raise UserError(
                f'{type_name(self.token_reduction["type"])} has parameters to train, which a hook adds too '
                'late for the optimizer: set model.backbone.token_reduction instead.'
            )

    def put_into(self, model: nn.Module) -> bool:
        """Put the reducer into ``model``, unless it is there; return whether that added trainable parameters."""
        given = [self.token_reduction, self.attn_backend]
        if vars(model).get('_reduced_by_hook') == [*given, *_reducers(model)]:
            return False
        known = {id(parameter) for parameter in model.parameters()}
        apply_token_reduction(model, self.token_reduction, self.attn_backend)
        model._reduced_by_hook = [*given, *_reducers(model)]
        return any(p.requires_grad and id(p) not in known for p in model.parameters())


def _reducers(model):
    return [module for module in model.modules() if isinstance(module, TokenReducer)]


def hooks_of(cfg: dict) -> list[TokenReductionHook]:
    """Build each ``TokenReductionHook`` in the ``custom_hooks`` of a config."""
    hooks = [hook for hook in cfg.get('custom_hooks') or () if is_type(hook, 'mmtr.TokenReductionHook')]
    return [
        TokenReductionHook(**{key: value for key, value in hook.items() if key not in ('type', 'priority')})
        for hook in hooks
    ]


def _follows_config(name):
    """Property for the attribute ``name`` in which libraries store a model's config; setting it applies the hooks."""

    def get(model):
        if name not in vars(model):
            raise AttributeError(name)
        return vars(model)[name]

    def put(model, cfg):
        vars(model)[name] = cfg
        for hook in hooks_of(cfg) if isinstance(cfg, (Config, dict)) else ():
            if hook.put_into(model):
                raise UserError(
                    f'{type_name(hook.token_reduction["type"])} has parameters, which a hook may add too '
                    'late for the checkpoint: use mmtr.init_model, or set model.backbone.token_reduction.'
                )

    return property(get, put, lambda model: vars(model).pop(name))


# mmpretrain stores the config as _config.
for _name in ('cfg', '_config'):
    setattr(BaseModel, _name, _follows_config(_name))
