"""The base class of token reducers, and building a reducer from a config."""

import logging
from typing import Any, Callable, Optional, Union

from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor

from mmtr.declared import Declared, build_from_key
from mmtr.errors import UserError
from mmtr.registry import TOKEN_REDUCERS
from mmtr.tokens import Tokens

from .backbone_info import BackboneInfo
from .multiples import check_multiple
from .rising import is_number, settings_at_share


class BackbonePart(Declared, BaseModule):
    """Base class of what a key of a backbone's config builds: a reducer or a PEFT.

    Args:
        backbone: Layers and channels of the backbone.
    """

    def __init__(self, backbone: BackboneInfo):
        super().__init__()
        self.backbone = backbone

    def init_weights(self) -> None:
        """Initialise all weights; the backbone calls it after its own initialisation."""
        # Children first: a module may initialise its children again, in its own way.
        for module in reversed([module for module in self.modules() if module is not self]):
            draw = getattr(module, 'init_weights', None) or getattr(module, 'reset_parameters', None)
            if draw is not None:
                draw()


class TokenReducer(BackbonePart):
    """Base class of token reducers, which act at five moments of each layer, and restore tokens; it does nothing.

    Layers are counted from 0. No method may store state on the module: undo steps go into ``tokens.undo``, other
    notes of a forward pass into ``tokens.memo``. ``attention``, ``between`` and ``ffn`` run twice for a layer under
    activation checkpointing, and must return the same both times. Subclasses declare their settings as annotations of
    ``__init__`` with values of ``mmtr.settings``; they are checked before it runs.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.

    Raises:
        UserError: The method ``needs_class_token``, and the backbone has no prefix token.
    """

    setting_prefix = 'token_reduction.'
    #: Settings by which no token is reduced; the shared tests compare them with the plain model. Where one is a number,
    #: and the attribute of its name is what the configured setting comes to, a reduction can rise, see ``at_share``.
    nothing: dict = {}
    #: The config that ``build_token_reducer`` built the reducer from.
    cfg: Optional[dict] = None
    #: What the length of a shortened sequence, prefix tokens included, is a multiple of.
    multiple_of = 1
    #: Share of the reduction in training, 0 to 1, if the method follows it by itself; None: see ``at_share``.
    rate: Optional[float] = None
    #: Whether the number of tokens in each layer depends on the settings and the grid alone.
    fixed_count = True
    #: Whether the method reads the class token, the first prefix token.
    needs_class_token = False
    #: Whether the method has parameters, so that the model must be trained with it.
    trained = False
    #: Whether its parameters are still random: neither loaded nor trained since they were initialised.
    untrained = False
    #: Where tokens are restored: ``before_norm``, so that any head gets (B, C, H, W), or ``after_head``, as logits.
    restore_at = 'before_norm'
    #: Whether the method works in backbones of stages: it acts between layers only, and reduces a grid, or window, to
    #: a grid in raster order, whose height depends on the old height alone, and its width on the old width.
    leaves_grid = False
    #: Whether the method works in all stages of a backbone of stages, and keeps every token between layers.
    every_stage = False
    #: Whether attention counts a merged token once for each patch that it stands for.
    proportional = False
    #: Mode by which the relative position table of a Swin is resized to a reduced window: ``bicubic`` or ``bilinear``.
    table_interpolation = 'bicubic'

    def __init__(self, backbone: BackboneInfo):
        super().__init__(backbone)
        if self.needs_class_token and backbone.num_prefix == 0:
            raise UserError(
                f'token_reduction.type={type(self).__name__!r} reads the class token, and this backbone has none: '
                'choose another method, or set with_cls_token=True of the backbone, if it has that setting.'
            )
        self.untrained = self.trained

    @property
    def name(self) -> str:
        """The name of the method, for tables."""
        return type(self).__name__

    @property
    def caution(self) -> str:
        """A warning about these settings in this backbone, as a sentence; empty: none."""
        return ''

    def train(self, mode: bool = True) -> 'TokenReducer':
        """Set training mode, as torch; warn if an untrained reducer that must be trained is put in eval mode."""
        if self.untrained and not mode:
            print_log(
                f'{self.name} learns which tokens matter and has not: it chooses at random until the model is '
                'trained with it, or a checkpoint of such a training is loaded.',
                'current',
                logging.WARNING,
            )
        self.untrained = False  # it is being trained now, or the warning was given
        return super().train(mode)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.untrained = self.untrained and not any(name.startswith(prefix) for name in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search; all settings that can be drawn must be valid. Here: the defaults alone.

        Args:
            trial: Draws values, as optuna's ``Trial``, with ``suggest_float``, ``suggest_int`` and so on.
            backbone: Layers and channels of the backbone that the settings are for.
        """
        return {}

    def strength(self) -> dict:
        """Return the settings of ``nothing`` that are numbers as they are here: how much is reduced."""
        found = {key: getattr(self, key, None) for key, none in self.nothing.items() if is_number(none)}
        return {key: value for key, value in found.items() if is_number(value)}

    def at_share(self, share: float) -> 'TokenReducer':
        """Build a reducer like this one that reduces by a share: each ``strength`` is interpolated from ``nothing``.

        Args:
            share: 0, nothing is reduced, to 1.

        Raises:
            UserError: See ``settings_at_share``.
        """
        lower = build_token_reducer({**self.cfg, **settings_at_share(self, share)}, self.backbone)
        for name, part in self.named_children():  # a ``ResidualCode``, which both train
            setattr(lower, name, part)
        return lower

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Act before layer ``i``."""
        return tokens

    def attention(self, i: int, attn: Any, x: Tensor, tokens: Tokens) -> Union[Tensor, tuple[Tensor, dict]]:
        """Compute the attention branch of layer ``i``, without its residual.

        Args:
            attn: Attention of the layer, bound to ``tokens``, with ``branch(x)``, ``qkv(x, kept=None)`` and
                ``attend(q, k, v, bias=None, kept=None)`` on every backbone. ``kept`` (B, M) are the indices of the
                patch tokens that ``x`` consists of, if not all. ``positioned(q, k, kept=None)`` are queries, keys
                and bias of the logits, for methods that rank by these.
            x: (B, P + N, C) normalised ``tokens.x``.

        Returns:
            (B, P + N, C); or this and a dict of notes, which ``between`` finds in ``tokens.memo``.
        """
        return attn.branch(x)

    def between(self, i: int, tokens: Tokens) -> Tokens:
        """Act between the attention and the FFN of layer ``i``."""
        return tokens

    def ffn(self, i: int, ffn: Callable[[Tensor], Tensor], x: Tensor, tokens: Tokens) -> Tensor:
        """Compute the FFN branch of layer ``i``, without its residual: (B, P + N, C) -> (B, P + N, C).

        Args:
            ffn: FFN of the layer, (..., C) -> (..., C).
            x: (B, P + N, C) normalised ``tokens.x``.
        """
        return ffn(x)

    def after_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Act after layer ``i``."""
        return tokens

    def restore(self, tokens: Tokens) -> Tokens:
        """Restore a token for every patch, for an output of the backbone; the next layer still gets ``tokens``."""
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
        """Restore the logits of all patches, with ``restore_at='after_head'``: (B, N, K) -> (B, H * W, K)."""
        return logits if tokens.undo is None else tokens.undo.expand(logits)

    def losses(self, outputs: dict[str, Tensor], data_samples: list) -> dict[str, Tensor]:
        """Compute auxiliary training losses.

        Args:
            outputs: Outputs that this reducer noted in the forward pass, by name; see ``auxiliary_outputs``.
            data_samples: Data samples of the batch, one an image, with its annotations.
        """
        return {}

    def calibrate(self, forward: Callable[[], object]) -> None:
        """Make an untrained reducer keep as many tokens as a trained one, so that its speed can be measured.

        Args:
            forward: Runs the backbone, in eval mode, on the images of the measurement.
        """

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in the attention of each layer; without ``fixed_count``, the fewest possible.

        Args:
            grid: (H, W) of the patch grid.
            depth: Number of layers of the backbone.
        """
        return [rows * columns for rows, columns in self.grid_schedule(grid, depth)]

    def ffn_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in the FFN of each layer, see ``token_schedule``; here those of its attention."""
        return self.token_schedule(grid, depth)

    def grid_schedule(self, grid: tuple[int, int], depth: int) -> list[tuple[int, int]]:
        """Return the (rows, columns) of the token grid in each layer, for methods that keep a grid."""
        return [grid] * depth

    def token_map(self, tokens: Tokens) -> Optional[tuple[Tensor, Tensor]]:
        """Map each patch to its group and its representative, for pictures; None if no token is reduced.

        Returns:
            The group of each patch (B, H * W): 0 normal (it has no token), 1 representative (it has one), 2 unique;
            and the raster position of the patch that represents it (B, H * W).
        """
        if tokens.undo is None:
            return None
        nowhere = tokens.grid[0] * tokens.grid[1]
        index = tokens.index if tokens.size is None else tokens.index.masked_fill(tokens.size == 0, nowhere)
        group = index.new_zeros(index.shape[0], nowhere + 1).scatter(1, index, 1)[:, :-1]
        return group, tokens.undo.trace(tokens.index)


def attend(reducer: TokenReducer, i: int, attn: Any, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens]:
    """Run ``reducer.attention``; return the branch, and ``tokens`` with its notes in their memo."""
    found = reducer.attention(i, attn, x, tokens)
    out, notes = found if isinstance(found, tuple) else (found, {})
    return out, tokens.remember(**notes)


#: A reducer that does nothing, for any backbone.
NOTHING = TokenReducer(BackboneInfo(depth=0, embed_dims=0, num_prefix=0))


def build_token_reducer(cfg: Optional[dict], backbone: BackboneInfo) -> TokenReducer:
    """Build the reducer of a backbone from the value of its key ``token_reduction``.

    Args:
        cfg: ``dict(type=..., **settings)``, or None for the reducer that does nothing.
        backbone: Layers, channels and prefix tokens of the backbone.

    Raises:
        UserError: The method or a setting does not exist, or a setting has a value that is not allowed.
    """

    def check(method):
        if backbone.needs_grid and not (method.leaves_grid or method.every_stage):
            methods = sorted(TOKEN_REDUCERS.module_dict.items())
            fitting = ', '.join(n for n, m in methods if m.leaves_grid or m.every_stage and backbone.merges_apart)
            raise UserError(
                f'token_reduction.type={method.__name__!r} cannot work in a backbone of stages, whose windows and '
                f'convolutions need a grid of tokens: choose one of {fitting}.'
            )

    if cfg is None:
        return TokenReducer(backbone)
    reducer = build_from_key('token_reduction', TOKEN_REDUCERS, cfg, check, backbone=backbone)
    reducer.cfg = cfg
    check_multiple(reducer)
    return reducer


def default_start(depth: int) -> int:
    """Return the default first layer with reduced tokens: 10/24 of the depth, as in the papers' ViT-L."""
    return round(depth * 10 / 24)


def default_span(layers: Optional[tuple[int, int]], depth: int) -> tuple[int, int]:
    """Return ``layers``, or, for None, the span from ``default_start`` to the end."""
    return (default_start(depth), depth) if layers is None else layers
