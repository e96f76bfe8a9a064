"""DAR: the FFN of each layer runs on selected tokens only; attention runs on all."""

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
    """The token reduction of DAR (Lei et al., CVPR 2025); its fine-tuning is ``peft=dict(type='DAR')``.

    In each layer, after attention, a 3x3 convolution over the patch grid selects the patches whose tokens go through
    the FFN: at random in training, by a threshold in evaluation. Prefix tokens are always selected. The number of
    selected patches is learned; a loss keeps their mean share over the layers at the target. Training needs a model
    that computes ``losses``, such as ``mmtr.EncoderDecoder``.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        target: Share of the patches that are selected, as the mean over all layers of an image.
        temperature: Temperature of the Gumbel softmax.
        budget_weight: Weight of the loss mean((share of an image - target)^2).
        threshold: Patches whose probability is above this are selected in evaluation; 0: all.

    Raises:
        UserError: A setting has a value that is not allowed.
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
        self.logit_threshold = math.log(threshold / (1 - threshold)) if threshold else -math.inf
        self.selectors = nn.ModuleList(nn.Conv2d(backbone.embed_dims, 1, 3, padding=1) for _ in range(backbone.depth))

    def between(self, i: int, tokens: Tokens) -> Tokens:
        """Select patches, from tokens that are not normalised, as in the released code."""
        logits = self.selectors[i](tokens.patches.transpose(1, 2).unflatten(2, tokens.grid)).flatten(1)
        selected = straight_through(logits, self.temperature) if self.training else logits > self.logit_threshold
        selected = torch.cat([selected.new_ones(len(logits), tokens.num_prefix), selected], 1)
        return tokens.remember(selected=selected)

    def ffn(self, i: int, ffn: Callable[[Tensor], Tensor], x: Tensor, tokens: Tokens) -> Tensor:
        """Run the FFN: in training on all tokens, times 0 or 1; in evaluation on the selected ones."""
        selected = tokens.memo['selected']
        if self.training:
            out = ffn(x)
            return out * selected.to(out.dtype).unsqueeze(-1)
        return on_selected(ffn, x, selected)

    def after_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Note the selected share of each image; here, since checkpointing runs ``between`` and ``ffn`` twice."""
        if self.training:
            note_output(self, f'layer_{i:02}', tokens.memo['selected'][:, tokens.num_prefix :].mean(1))
        return tokens

    def losses(self, outputs: dict[str, Tensor], data_samples: list) -> dict[str, Tensor]:
        """Compute the budget loss, and ``selected``, the share of selected patches, for the log."""
        if not outputs:
            return {}
        shares = torch.stack(list(outputs.values()))
        return dict(
            loss_budget=self.budget_weight * (shares.mean(0) - self.target).square().mean(),
            selected=shares.detach().mean(),
        )

    @torch.no_grad()
    def calibrate(self, forward: Callable[[], object]) -> None:
        """Shift each selector's bias so that it selects a share ``target`` of the patches, as a trained one would."""
        if self.logit_threshold == -math.inf:
            return

        def shift(selector, args, logits):
            excess = logits.float().quantile(1 - self.target) - self.logit_threshold
            # Not in place: other models may share the weights.
            selector.bias = nn.Parameter(selector.bias - excess)
            return logits - excess

        hooks = [selector.register_forward_hook(shift) for selector in self.selectors]
        try:
            forward()
        finally:
            for hook in hooks:
                hook.remove()

    def ffn_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the fewest patch tokens in the FFN of each layer: none need be selected, or all are."""
        return [grid[0] * grid[1] if self.logit_threshold == -math.inf else 0] * depth

    def token_map(self, tokens: Tokens) -> Optional[tuple[Tensor, Tensor]]:
        """Map selected patches to the group unique, others to normal; each represents itself."""
        if 'selected' not in tokens.memo:
            return None
        group = 2 * (tokens.memo['selected'][:, tokens.num_prefix :] > 0).long()
        return group, torch.arange(group.shape[1], device=group.device).expand_as(group)
