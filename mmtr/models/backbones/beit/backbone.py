"""mmseg's BEiT and MAE with fused attention, token reduction and PEFT."""

import math
from typing import Optional

from mmengine.model import ModuleList
from mmseg.models.backbones import beit, mae
from torch import Tensor

from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import (
    ATTN_BACKEND,
    HEADS,
    STOCK,
    check_heads,
    check_patches,
    check_start,
    which_layers,
)
from mmtr.models.backbones.common.embedding import embedded_grid
from mmtr.models.backbones.common.plain import ReducibleBackbone
from mmtr.models.backbones.common.twins import backbone_twin, twin_of
from mmtr.ops.resize import resize_offsets, resize_positions
from mmtr.registry import MODELS
from mmtr.settings import Flag, Number, Whole
from mmtr.weights.tuned import weights_in

from .layer import reducible

TABLE, INDEX = 'relative_position_bias_table', 'relative_position_index'


class RelativeTables:
    """Mixin for a backbone with tables of relative positions: fits those of a file to its grid."""

    def fit_tables(self, state: dict[str, Tensor], path: str, prefix: str = '') -> None:
        """Resize the tables in ``state``, in place; their indices follow from the grid.

        Args:
            state: Weights by name.
            path: What holds them, for the error message.
            prefix: Of the weights of this backbone.

        Raises:
            UserError: A table is of no square grid.
        """
        for name, index in self.named_buffers():
            if name.endswith(INDEX) and prefix + name in state:
                state[prefix + name] = index
        for name, own in self.named_parameters():
            table = state.get(prefix + name) if name.endswith(TABLE) else None
            if table is None or len(table) == len(own):
                continue
            side = math.isqrt(len(table) - 3)
            if side * side != len(table) - 3:
                raise UserError(
                    f"The table '{name}' of '{path}' has {len(table)} rows, which are of no square grid, so it "
                    f'cannot be resized to {self._training_grid()}.'
                )
            state[prefix + name] = resize_offsets(table, (side // 2 + 1,) * 2, self._training_grid())

    def _fitted(self, state, path):
        state = super()._fitted(state, path)
        self.fit_tables(state, path)
        return state

    def not_in_files(self, name: str) -> bool:
        """Say whether a file may lack or have a weight, see ``TunableBackbone``."""
        return super().not_in_files(name) or name.endswith(INDEX)


class BiasedBackbone(RelativeTables, ReducibleBackbone):
    """Mixin for mmseg's BEiT and MAE: what differs from a ViT, once for both."""

    inherited = dict(
        STOCK, num_heads=HEADS, mlp_ratio=Whole(1, 64), qv_bias=Flag(), init_values=Number(least=0, most=1000)
    )
    final_norm_name = 'ln1'
    merges_apart = False

    def _build(self, given):
        """Build the stock backbone, whose arguments are checked, then what is ours."""
        own = {key: given.pop(key) for key in ('attn_backend', 'token_reduction', 'peft')}
        check_start(given['pretrained'], given['init_cfg'])
        check_heads(given['embed_dims'], given['num_heads'])
        check_patches(given['img_size'], given['patch_size'])
        if given['attn_drop_rate']:
            raise UserError(
                f"attn_drop_rate={given['attn_drop_rate']} has no effect in mmseg's {type(self).__name__}, which does "
                'not hand it on: leave it out.'
            )
        given['out_indices'] = which_layers('out_indices', given['out_indices'], given['num_layers'])
        super().__init__(**given)
        self.make_tunable(**own)

    def _make_reducible(self, attn_backend):
        self.layers = ModuleList(reducible(layer, attn_backend) for layer in self.layers)

    def _grid_of(self, shape):
        # mmseg does not pad the image: what fills no patch is left out.
        return embedded_grid(self.patch_embed.projection, self.patch_embed.adap_padding, shape)

    def _add_positions(self, x, grid):
        return x

    def _final_norm(self, x):
        return self.norm1(x) if self.final_norm else x

    def resize_rel_pos_embed(self, checkpoint: dict) -> dict[str, Tensor]:
        """Resize the tables of the pretrained file, which mmseg's ``init_weights`` then loads.

        mmseg's own method needs ``scipy.interpolate.interp2d``, which is gone since SciPy 1.14.
        """
        # mmseg has drawn all weights just now, those of the reducer too, in its own way.
        self.token_reducer.init_weights()
        return self._fitted(weights_in(checkpoint), self.pretrained_file)

    def _with_fitted_positions(self, state, path):
        return state


@MODELS.register_module()
class BEiT(BiasedBackbone, beit.BEiT):
    """mmseg's ``BEiT`` with three more arguments; other arguments, weights and outputs are mmseg's.

    mmseg's takes images of ``img_size`` alone. For an image of another size the tables of relative positions are
    resized in each forward pass, so that near patches keep their bias, see ``mmtr.ops.resize.resize_offsets``; those
    of a pretrained file are resized in the same way. A token without a position has the bias of the class token.

    Args:
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: no reduction.
        peft: ``dict(type=..., **settings)`` of a fine-tuning method, with the backbone frozen; None: all is trained.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        args, kwargs: mmseg's.

    Raises:
        UserError: The reducer, the PEFT or one of their settings does not exist; a setting has a value that is not
            allowed; the attention backend cannot run here; at the first forward: an image is smaller than a patch.
    """

    def __init__(
        self,
        *args,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        **kwargs,
    ):
        self._build(dict(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend))


@MODELS.register_module()
class MAE(BiasedBackbone, mae.MAE):
    """mmseg's ``MAE``, a BEiT with a position embedding: see ``BEiT``.

    For an image of another size the position embedding is interpolated too, bicubically, as mmseg does for a
    pretrained file.
    """

    def __init__(
        self,
        *args,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        **kwargs,
    ):
        self._build(dict(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend))

    def _add_positions(self, x, grid):
        return x + self._resize_positions(self.pos_embed, self._training_grid(), grid)

    def _resize_positions(self, table, old, new):
        return resize_positions(table, old, new, 1, antialias=False)

    def _with_fitted_positions(self, state, path):
        return ReducibleBackbone._with_fitted_positions(self, state, path)


twin_of(beit.BEiT)(backbone_twin(BEiT))
twin_of(mae.MAE)(backbone_twin(MAE))
