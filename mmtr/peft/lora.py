"""LoRA: low-rank updates of linear layers."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.reducers import BackboneInfo
from mmtr.registry import PEFTS
from mmtr.settings import PROBABILITY, Maybe, Number, OneOrMore, Text, Whole

from .base import PEFT


class LowRank(nn.Module):
    """The low-rank update of one linear layer, scaling * B A with scaling = alpha / rank; B is initialised to 0.

    ``down`` holds A (rank, inputs), ``up`` holds B (outputs, rank).

    Args:
        weight: (outputs, inputs) frozen weight of the layer, or that of a 1x1 convolution.
        rank: Rank of the update.
        alpha: Numerator of the scaling.
        dropout: Dropout probability of the input of A.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.down = nn.Linear(weight.shape[1], rank, bias=False)
        self.up = nn.Linear(rank, weight.shape[0], bias=False)
        self.dropout, self.scaling = nn.Dropout(dropout), alpha / rank
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise as published: Kaiming for A, zeros for B."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def add_to(self, layer: nn.Module, args: tuple, out: Tensor) -> Tensor:
        """Add the update to the output of the linear layer, or of some rows of it; a forward hook."""
        update = self.up(self.down(self.dropout(args[0])))
        return out + self.scaling * (update[..., args[3]] if len(args) > 3 else update)

    def change(self) -> Tensor:
        """Return the update of the weight, scaling * B A: (outputs, inputs)."""
        return self.scaling * self.up.weight.detach() @ self.down.weight.detach()


@PEFTS.register_module()
class LoRA(PEFT):
    """LoRA (Hu et al., ICLR 2022): W + scaling * B A in place of W; merged into W, it costs nothing.

    Args:
        backbone: Layers and channels of the backbone.
        rank: Rank of each update.
        alpha: Numerator of scaling = alpha / rank. None: ``rank``, so that scaling is 1.
        dropout: Dropout probability of the input of A.
        targets: Linear layers with an update: a regular expression, or a list of them, each matched with a whole
            name: ``qkv``, ``proj``, ``fc1``, ``fc2`` in all layers, or ``3.qkv`` in layer 3.

    Raises:
        UserError: A setting has a value that is not allowed, or one of ``targets`` matches no linear layer.
    """

    def __init__(
        self,
        backbone: BackboneInfo,
        rank: Whole(1, 2**12) = 8,
        alpha: Maybe(Number(above=0)) = None,
        dropout: PROBABILITY = 0.0,
        targets: OneOrMore(Text('a regular expression'), least=1) = ('qkv',),
    ):
        super().__init__(backbone)
        self.rank, self.alpha, self.dropout = rank, rank if alpha is None else alpha, dropout
        self.targets = (targets,) if isinstance(targets, str) else targets

    def attach(self, layers: Sequence[nn.Module]) -> None:
        """Add an update to each linear layer that ``targets`` matches, with a forward hook."""
        linears = {(i, name): linear for i, layer in enumerate(layers) for name, linear in layer.linears().items()}
        chosen = set()
        for target in self.targets:
            found = {(i, name) for i, name in linears if _fits(target, name) or _fits(target, f'{i}.{name}')}
            if not found:
                names = ', '.join(dict.fromkeys(name for _, name in linears))
                raise UserError(
                    f'peft.targets={target!r} is no linear layer of this backbone: it has {names} in '
                    f'each of {len(layers)} layers, and 0.qkv, for example, is that of the first alone.'
                )
            chosen |= found
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: LowRank(weight, self.rank, self.alpha, self.dropout)
                    for name, (_, weight) in layer.linears().items()
                    if (i, name) in chosen
                }
            )
            for i, layer in enumerate(layers)
        )
        for i, each in enumerate(self.layers):
            for name, low_rank in each.items():
                linears[i, name][0].register_forward_hook(low_rank.add_to)

    def merged_state_dict(self, backbone: nn.Module) -> dict[str, Tensor]:
        """Merge the trained parameters into the weights, see ``PEFT``."""
        changes = {
            id(linears[name][1]): low_rank.change()
            for each, linears in zip(self.layers, (layer.linears() for layer in backbone.all_layers))
            for name, low_rank in each.items()
        }
        with torch.no_grad():
            return {
                name: value.detach() + changes[id(value)].view_as(value) if id(value) in changes else value.detach()
                for name, value in backbone.state_dict(keep_vars=True).items()
                if not name.startswith('peft.')
            }


def _fits(target, name):
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise UserError(f'peft.targets={target!r} is no regular expression: {error}.') from error
