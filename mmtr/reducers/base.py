"""The contract that every token reducer keeps."""

import logging
from dataclasses import dataclass
from typing import Callable, Optional, Union

from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor

from mmtr.declared import Declared, build_from_key
from mmtr.errors import UserError
from mmtr.registry import TOKEN_REDUCERS
from mmtr.tokens import Tokens


@dataclass(frozen=True)
class BackboneInfo:
    """What a reducer or a PEFT is told of its backbone when it is built: layers, channels, prefix tokens.

    ``grid`` is (H, W) of the patch grid of its training images; None: not known. With a ``stage``, counted from
    1, the layers are those of this stage of a backbone that attends within windows, and ``grid`` is a window's;
    the batch axis of the tokens is then B * windows, and windows at the border of an image may be smaller.
    ``widths`` are the channels of each layer where they differ; ``embed_dims`` are then those of the last output.
    ``output`` is what its outputs are made of: a token for each of the ``patches``, the ``mean`` of those that are
    left, weighted by size, or the ``class_token`` alone.
    """

    depth: int
    embed_dims: int
    num_prefix: int
    grid: Optional[tuple[int, int]] = None
    stage: Optional[int] = None
    widths: Optional[tuple[int, ...]] = None
    output: str = 'patches'

    @property
    def in_windows(self) -> bool:
        """Whether the layers attend within windows."""
        return self.stage is not None

    @property
    def layer_dims(self) -> tuple[int, ...]:
        """Channels of each layer."""
        return self.widths or (self.embed_dims,) * self.depth


class BackbonePart(Declared, BaseModule):
    """What a key of a backbone builds: a reducer or a PEFT.

    Args:
        backbone: The backbone it is built for.
    """

    def __init__(self, backbone: BackboneInfo):
        super().__init__()
        self.backbone = backbone

    def init_weights(self) -> None:
        """Draw all weights anew; whatever holds this calls it after it has filled all that is inside it."""
        # From the inside out: a module may draw again what is inside it.
        for module in reversed([module for module in self.modules() if module is not self]):
            draw = getattr(module, 'init_weights', None) or getattr(module, 'reset_parameters', None)
            if draw is not None:
                draw()


class TokenReducer(BackbonePart):
    """Reduces tokens at any of five moments of a layer, and restores them. This one does nothing.

    Layers are counted from 0. No method may leave state on the module: what takes a reduction back goes
    into ``tokens.undo``, what else a forward pass must remember into ``tokens.memo``. ``attention``, ``between`` and
    ``ffn`` can run twice for one layer (activation checkpointing) and must then give the same.

    Args:
        backbone: The backbone it is built for. Settings are what the annotations of ``__init__`` declare, in values of
            ``mmtr.settings``, and are checked, against this backbone, before it runs.

    Raises:
        UserError: It ``needs_class_token``, and the backbone has no prefix token.
    """

    setting_prefix = 'token_reduction.'
    #: Settings under which nothing is reduced; the shared test suite compares them with the plain model.
    nothing: dict = {}
    #: Whether the number of tokens in each layer depends on the settings and the grid alone.
    fixed_count = True
    #: Whether it reads the class token, the first of the prefix tokens.
    needs_class_token = False
    #: Whether it has parameters of its own, so that a model must be trained with it.
    trained = False
    #: Whether its parameters are as they were drawn, while it learns: neither filled nor trained since.
    untaught = False
    #: Where the tokens of an output are given back: ``before_norm``, as (B, C, H, W) for any head, or ``after_head``.
    restore_at = 'before_norm'
    #: Whether it works within windows: what it leaves of one is a grid again, in raster order, whose rows depend on
    #: those of the window alone and whose columns on its columns; and it only acts between layers.
    within_windows = False
    #: How the position table of a Swin is resized to what is left of a window: ``bicubic`` or ``bilinear``.
    table_interpolation = 'bicubic'

    def __init__(self, backbone: BackboneInfo):
        super().__init__(backbone)
        if self.needs_class_token and backbone.num_prefix == 0:
            raise UserError(
                f'token_reduction.type={type(self).__name__!r} reads the class token, and this '
                'backbone has none: build it with with_cls_token=True, or choose another method.'
            )
        self.untaught = self.trained

    @property
    def name(self) -> str:
        """Of the method, for tables."""
        return type(self).__name__

    @property
    def caution(self) -> str:
        """What is known to speak against these settings in this backbone, in a sentence; mostly nothing."""
        return ''

    def train(self, mode=True):
        """As torch; one that learns says so where it is used before it has learnt."""
        if self.untaught and not mode:
            print_log(
                f'{self.name} learns which tokens matter and has not: it chooses at random until the model is '
                'trained with it, or a checkpoint of such a training is loaded.',
                'current',
                logging.WARNING,
            )
        self.untaught = False  # it is taught now, or it has been said
        return super().train(mode)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.untaught = self.untaught and not any(name.startswith(prefix) for name in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def search_space(cls, trial, backbone: BackboneInfo) -> dict:
        """Settings to try when they are searched for; any that are drawn must work. Here: the defaults alone.

        Args:
            trial: Draws values, as optuna's ``Trial`` does (``suggest_float``, ``suggest_int``, ...).
            backbone: The backbone that the settings are for.
        """
        return {}

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Before layer ``i``."""
        return tokens

    def attention(self, i: int, attn, x: Tensor, tokens: Tokens) -> Union[Tensor, tuple[Tensor, dict]]:
        """The attention branch of layer ``i``, without its residual: (B, P + N, C) -> (B, P + N, C).

        With a dict beside it: what ``between`` finds in ``tokens.memo``.

        Args:
            attn: The layer's attention, which knows where ``tokens`` are, with ``branch(x)``,
                ``qkv(x, kept=None)`` and ``attend(q, k, v, bias=None, kept=None)``, alike on every host. For patch
                tokens that are fewer than those of ``tokens``, ``kept`` (B, M) says which of these each one is.
            x: (B, P + N, C), normalised ``tokens.x``.
        """
        return attn.branch(x)

    def between(self, i: int, tokens: Tokens) -> Tokens:
        """After the attention of layer ``i``, before its FFN."""
        return tokens

    def ffn(self, i: int, ffn: Callable[[Tensor], Tensor], x: Tensor, tokens: Tokens) -> Tensor:
        """The FFN branch of layer ``i``, without its residual: (B, P + N, C) -> (B, P + N, C).

        Args:
            ffn: The FFN, any (..., C) -> (..., C).
            x: (B, P + N, C), normalised ``tokens.x``.
        """
        return ffn(x)

    def after_layer(self, i: int, tokens: Tokens) -> Tokens:
        """After layer ``i``."""
        return tokens

    def restore(self, tokens: Tokens) -> Tokens:
        """All patch tokens in raster order, for an output of the backbone; the flow goes on with ``tokens``."""
        return tokens.restored()

    @property
    def restores_late(self) -> bool:
        """Whether tokens are given back after the head; of outputs that need none, never."""
        return self.restore_at == 'after_head' and self.backbone.output == 'patches'

    def gives_back(self, grid: tuple[int, int]) -> bool:
        """Whether patches get tokens again: for outputs of all patches, or between the layers, as the schedule says."""
        if self.backbone.output == 'patches':
            return True
        schedule = self.token_schedule(grid, self.backbone.depth)
        return any(b > a for a, b in zip(schedule, schedule[1:]))

    def give_back(self, logits: Tensor, tokens: Tokens) -> Tensor:
        """With ``restore_at='after_head'``: logits (B, N, K) of the patch ``tokens`` of an output -> (B, H * W, K)."""
        return logits if tokens.undo is None else tokens.undo.expand(logits)

    def losses(self, outputs: dict[str, Tensor], data_samples: list) -> dict[str, Tensor]:
        """Auxiliary training losses.

        Args:
            outputs: What this reducer noted in the forward pass, by name; see ``auxiliary_outputs``.
            data_samples: The batch's, one an image, with its annotations.
        """
        return {}

    def calibrate(self, forward: Callable[[], object]) -> None:
        """Make a reducer that was not trained compute as much as a trained one, so that its cost can be measured.

        Args:
            forward: Runs the backbone, in eval mode, on the images of the measurement.
        """

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """How many patch tokens the attention of each layer computes on, prefix tokens not counted.

        Without ``fixed_count``: the fewest possible.

        Args:
            grid: (H, W) of the patch grid.
            depth: Layers of the backbone.
        """
        return [rows * columns for rows, columns in self.grid_schedule(grid, depth)]

    def grid_schedule(self, grid: tuple[int, int], depth: int) -> list[tuple[int, int]]:
        """Rows and columns that the patch tokens of each layer form; only of methods that leave a grid."""
        return [grid] * depth

    def token_map(self, tokens: Tokens) -> Optional[tuple[Tensor, Tensor]]:
        """What happened to each patch, for pictures; None where nothing is reduced at this point.

        Returns:
            The group of each patch (B, H * W): 0 normal, 1 representative (it has a token), 2 unique; and the raster
            position of the patch that stands for it (B, H * W).
        """
        if tokens.undo is None:
            return None
        nowhere = tokens.grid[0] * tokens.grid[1]
        index = tokens.index if tokens.size is None else tokens.index.masked_fill(tokens.size == 0, nowhere)
        group = index.new_zeros(index.shape[0], nowhere + 1).scatter(1, index, 1)[:, :-1]
        return group, tokens.undo.trace(tokens.index)


def attend(reducer: TokenReducer, i: int, attn, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens]:
    """``reducer.attention``, and ``tokens`` with what it notes for ``between``."""
    found = reducer.attention(i, attn, x, tokens)
    out, notes = found if isinstance(found, tuple) else (found, {})
    return out, tokens.remember(**notes)


#: Does nothing, in a backbone of any shape.
NOTHING = TokenReducer(BackboneInfo(depth=0, embed_dims=0, num_prefix=0))


def build_token_reducer(cfg: Optional[dict], backbone: BackboneInfo) -> TokenReducer:
    """Build the reducer of a backbone from the value of its key ``token_reduction``.

    Args:
        cfg: ``dict(type=..., **settings)``, or None for the reducer that does nothing.

    Raises:
        UserError: The method or one of its settings does not exist, or a setting cannot work.
    """

    def check(method):
        if backbone.in_windows and not method.within_windows:
            fitting = ', '.join(n for n, m in sorted(TOKEN_REDUCERS.module_dict.items()) if m.within_windows)
            raise UserError(
                f'token_reduction.type={method.__name__!r} cannot work within the windows of a Swin, where '
                f'what is left must be a smaller grid: choose one of {fitting}.'
            )

    return (
        TokenReducer(backbone)
        if cfg is None
        else build_from_key('token_reduction', TOKEN_REDUCERS, cfg, check, backbone=backbone)
    )


def default_start(depth: int) -> int:
    """The layer from which methods reduce unless told: 10 of 24, where the papers start in a ViT-L."""
    return round(depth * 10 / 24)


def default_span(layers: Optional[tuple[int, int]], depth: int) -> tuple[int, int]:
    """``layers``, or, for None, those from ``default_start`` on."""
    return (default_start(depth), depth) if layers is None else layers
