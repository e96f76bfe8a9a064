"""DAR: the FFN of each layer runs on some of the tokens; attention sees all."""

import math
from typing import Callable, Optional

import torch
from torch import Tensor, nn

from mmtr.ops.selection import on_selected, straight_through
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import PROBABILITY, Number
from mmtr.tokens import Tokens

from .auxiliary import note_output
from .base import BackboneInfo, TokenReducer


@TOKEN_REDUCERS.register_module()
class DAR(TokenReducer):
    """The token reduction of DAR (Lei et al., CVPR 2025); ``peft=dict(type='DAR')`` is its other half.

    In each layer, after attention, a 3x3 convolution over the grid chooses the patches whose tokens go through
    the FFN: at random in training, by a threshold in evaluation. Prefix tokens always do. How many patches an
    image needs is learned; a loss keeps their mean over the layers at the budget. In training the model must be
    one that asks for ``losses``, such as ``mmtr.EncoderDecoder``.

    Args:
        backbone: See ``TokenReducer``.
        target: Budget: share of the patches that go through the FFN, over all layers of an image.
        temperature: tau of the Gumbel noise.
        budget_weight: Weight of the loss mean((share of an image - target)^2).
        threshold: In evaluation patches are chosen whose probability is above this; 0: all.

    Raises:
        UserError: A setting cannot work.
    """

    nothing = dict(threshold=0.0)
    fixed_count = False
    trained = True

    def __init__(
        self,
        backbone: BackboneInfo,
        target: Number(above=0, most=1, noun='a share') = 0.5,
        temperature: Number(least=1e-3) = 5.0,
        budget_weight: Number(least=0) = 2.0,
        threshold: PROBABILITY = 0.5,
    ):
        super().__init__(backbone)
        self.target, self.temperature, self.budget_weight = target, temperature, budget_weight
        self.cut = math.log(threshold / (1 - threshold)) if threshold else -math.inf
        self.selectors = nn.ModuleList(nn.Conv2d(backbone.embed_dims, 1, 3, padding=1) for _ in range(backbone.depth))

    def between(self, i: int, tokens: Tokens) -> Tokens:
        """Choose; the released code looks at the tokens as they are, not normalised."""
        logits = self.selectors[i](tokens.patches.transpose(1, 2).unflatten(2, tokens.grid)).flatten(1)
        selected = straight_through(logits, self.temperature) if self.training else logits > self.cut
        selected = torch.cat([selected.new_ones(len(logits), tokens.num_prefix), selected], 1)
        return tokens.remember(selected=selected)

    def ffn(self, i: int, ffn: Callable[[Tensor], Tensor], x: Tensor, tokens: Tokens) -> Tensor:
        """In training of all tokens, times 0 or 1; in evaluation of the chosen ones."""
        selected = tokens.memo['selected']
        if self.training:
            out = ffn(x)
            return out * selected.to(out.dtype).unsqueeze(-1)
        return on_selected(ffn, x, selected)

    def after_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Note the share of each image: here, since ``between`` and ``ffn`` may run a second time, without losses."""
        if self.training:
            note_output(self, f'layer_{i:02}', tokens.memo['selected'][:, tokens.num_prefix :].mean(1))
        return tokens

    def losses(self, outputs: dict[str, Tensor], data_samples: list) -> dict[str, Tensor]:
        """The budget loss; ``selected``, the share of all patches, is for the log."""
        if not outputs:
            return {}
        shares = torch.stack(list(outputs.values()))
        return dict(
            loss_budget=self.budget_weight * (shares.mean(0) - self.target).square().mean(),
            selected=shares.detach().mean(),
        )

    @torch.no_grad()
    def calibrate(self, forward: Callable[[], object]) -> None:
        """Shift each selector's bias so that it chooses ``target`` of these patches, as one trained to its budget."""
        if self.cut == -math.inf:
            return

        def shift(selector, args, logits):
            excess = logits.float().quantile(1 - self.target) - self.cut
            # Not in place: other models may share the weights.
            selector.bias = nn.Parameter(selector.bias - excess)
            return logits - excess

        hooks = [selector.register_forward_hook(shift) for selector in self.selectors]
        try:
            forward()
        finally:
            for hook in hooks:
                hook.remove()

    def token_map(self, tokens: Tokens) -> Optional[tuple[Tensor, Tensor]]:
        """Chosen patches are unique, the others normal; each stands for itself."""
        if 'selected' not in tokens.memo:
            return None
        group = 2 * (tokens.memo['selected'][:, tokens.num_prefix :] > 0).long()
        return group, torch.arange(group.shape[1], device=group.device).expand_as(group)
