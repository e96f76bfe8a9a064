"""Token reduction for an unmodified config."""
from mmengine.hooks import Hook

from mmtr.apis import apply_token_reduction
from mmtr.errors import UserError
from mmtr.registry import HOOKS


@HOOKS.register_module()
class TokenReductionHook(Hook):
    """Reduce tokens in the runner's model before it trains or tests: ``custom_hooks`` of any config.

    Args:
        token_reduction: ``dict(type=..., **settings)``.
        attn_backend: ``auto | sdpa | xformers | math``.

    Raises:
        UserError: As ``apply_token_reduction``; or the method has parameters to train, which the
            optimizer, built before, would miss.
    """
    priority = 'VERY_HIGH'

    def __init__(self, token_reduction, attn_backend='auto'):
        self.token_reduction, self.attn_backend = token_reduction, attn_backend

    def before_run(self, runner):
        """Put the reducer in; weights are loaded afterwards."""
        known = {id(parameter) for parameter in runner.model.parameters()}
        apply_token_reduction(runner.model, self.token_reduction, self.attn_backend)
        new = [p for p in runner.model.parameters() if p.requires_grad and id(p) not in known]
        if new and runner._train_loop is not None:
            raise UserError(f'{self.token_reduction["type"]} has parameters to train, which a hook adds too late '
                            'for the optimizer: set model.backbone.token_reduction instead.')
