"""Twins' PCPVT and SVT of mmseg with fused attention, token reduction and PEFT."""

from dataclasses import replace
from typing import Callable, Optional

from mmengine.model import ModuleList
from mmseg.models.backbones import twins
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import ATTN_BACKEND, CHANNELS
from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.models.backbones.common.layer import FFN
from mmtr.models.backbones.common.twins import backbone_twin, share, twin_of
from mmtr.models.backbones.common.windowed import WindowedAttention
from mmtr.ops.shifted_windows import Windows, make_layout
from mmtr.reducers import BackboneInfo
from mmtr.registry import MODELS
from mmtr.settings import Flag, Listed, Whole
from mmtr.tokens import Tokens

from .backbone import STAGES, PyramidBackbone, arguments, check_stages
from .layer import PyramidLayer, pyramid_attention

#: Arguments that are lists with a value for each stage; further values are ignored, as in the stock classes.
LISTS = ('embed_dims', 'num_heads', 'depths', 'patch_sizes', 'strides', 'mlp_ratios', 'sr_ratios', 'windiow_sizes')
#: Rows and columns of a grid so large that whoever reduces a share of it reduces it.
LARGE = 2**20


class _TwinsLayer(PyramidLayer):
    """Mixin of both layers: the residual is outside of attention and FFN, after a second drop path."""

    def _linears_of_ffn(self):
        (fc1, *_), fc2, *_ = self.ffn.layers
        return (fc1, fc1.weight), (fc2, fc2.weight)

    def _feed(self, x, tokens, branch: Callable):
        return tokens.x + self.drop_path(self.ffn(x, identity=0.0, branch=branch))

    def _ffn_branch(self, tokens):
        return self.ffn.branch


class GSALayer(_TwinsLayer, twins.GSAEncoderLayer):
    """mmseg's layer with attention to the coarser grid of all tokens, on ``Tokens``."""

    def _attend(self, x, tokens, branch):
        return tokens.x + self.drop_path(self.attn(x, tokens.form, identity=0.0, branch=branch))


class LocallyGroupedSelfAttention(twins.LocallyGroupedSelfAttention):
    """mmseg's attention within windows."""

    backend: str

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int], branch: Optional[Callable[[Tensor], Tensor]] = None
    ) -> Tensor:
        """Run attention without residual, as stock; ``branch`` computes it if given: (B, H * W, C)."""
        return super().forward(x, hw_shape) if branch is None else self.proj_drop(branch(x))

    def at(self, tokens: Tokens) -> TokenAttention:
        """Bind the attention to ``tokens``, whose windows it needs."""
        return WindowedAttention(self, tokens.windows.layouts[0], self.backend)


class LSALayer(_TwinsLayer, twins.LSAEncoderLayer):
    """mmseg's layer with attention within windows, on ``Tokens``."""

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return the linear layers by name, see ``ReducibleLayer``."""
        (fc1, fc2), attn = self._linears_of_ffn(), self.attn
        return dict(qkv=(attn.qkv, attn.qkv.weight), proj=(attn.proj, attn.proj.weight), fc1=fc1, fc2=fc2)

    def _formed(self, tokens, form):
        side = self.attn.window_size
        if tokens.windows is None or tokens.windows.grid != form:
            # The stock class masks padding only if there is some on both sides; on one side it is attended to.
            fill = not (form[0] % side and form[1] % side)
            layout = make_layout(form, (side, side), fill=fill, device=tokens.x.device)
            tokens = tokens.replace(windows=Windows(form, (side, side), (layout,)))
        return super()._formed(tokens, form)

    def _attend(self, x, tokens, branch):
        return tokens.x + self.drop_path(self.attn(x, tokens.form, branch=branch))


def _twins_layer(stock: nn.Module, attn_backend: str) -> _TwinsLayer:
    """Return the twin of a layer."""
    local = isinstance(stock, twins.LSAEncoderLayer)
    twin = share(LSALayer if local else GSALayer, stock)
    twin.ffn = share(FFN, stock.ffn)
    if local:
        twin.attn = share(LocallyGroupedSelfAttention, stock.attn)
        twin.attn.backend = attn_backend
    else:
        twin.attn = pyramid_attention(stock.attn, attn_backend)
    return twin


class TwinsBackbone(PyramidBackbone):
    """Mixin of PCPVT and SVT, which encode positions by a convolution after the first block of each stage."""

    inherited = {
        **arguments(norm_after_stage=Flag()),
        **{key: Listed(Whole(1, 256), **STAGES) for key in ('depths', 'windiow_sizes')},
        'embed_dims': Listed(CHANNELS, **STAGES),
        'mlp_ratios': Listed(Whole(1, 64), **STAGES),
    }

    def _build(self, given, **ours):
        """Check the arguments of the stock class against each other, and build it and what is ``ours``."""
        count = len(given['depths'])
        lists = {key: given[key][:count] for key in LISTS if key in given}
        check_stages(
            count,
            # Stock gives no output of a stage that is not there; SVT has three stages and names four.
            [i for i in given['out_indices'] if i < count] or given['out_indices'],
            widths=lists['embed_dims'],
            **{key: given[key] for key in ('pretrained', 'init_cfg')},
            **lists,
        )
        super().__init__(**given)
        self.make_tunable(**ours)

    def _make_reducible(self, attn_backend):
        self.layers = ModuleList(
            ModuleList(_twins_layer(block, attn_backend) for block in stage) for stage in self.layers
        )
        self.out_indices = tuple(i for i in self.out_indices if i < len(self.layers))

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of each stage."""
        return self.layers

    @property
    def embeddings(self) -> list[nn.Module]:
        """The patch embedding of each stage."""
        return list(self.patch_embeds)

    def stage_info(self, stage: int) -> BackboneInfo:
        """Return what the reducer of a stage, counted from 1, must know: it waits for the positions."""
        return replace(super().stage_info(stage), first=1)

    def _check_start(self, reducer):
        info, whole = reducer.backbone, (LARGE * reducer.backbone.multiple,) * 2
        if reducer.grid_schedule(whole, info.depth)[0] != whole:
            raise UserError(
                f'token_reduction of type {reducer.name} begins before block 0 of stage {info.stage}, but a '
                f'{type(self).__name__} encodes positions after that block, which takes all tokens: begin before block '
                '1 or later, in a stage that has one.'
            )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract feature maps from images, see ``PyramidBackbone``."""
        return tuple(out.contiguous() for out in super().forward(x))

    def _embed(self, i, x):
        x, grid = self.patch_embeds[i](x)
        return self.position_encoding_drops[i](x), grid

    def _positioned(self, i, j, tokens):
        return tokens if j else tokens.replace(x=self.position_encodings[i](tokens.x, tokens.grid))

    def _norm(self, i, x):
        return self.norm_list[i](x) if self.norm_after_stage else x


@MODELS.register_module()
class PCPVT(TwinsBackbone, twins.PCPVT):
    """mmseg's ``PCPVT`` (Twins) with three more arguments; weights and outputs are mmseg's.

    Args:
        token_reduction: See ``MixVisionTransformer``; tokens are reduced before block 1 of their stage or later.
        peft, attn_backend: See ``MixVisionTransformer``.
        args, kwargs: mmseg's.

    Raises:
        UserError: See ``MixVisionTransformer``; or the reducer begins before block 1.
    """

    def __init__(
        self,
        *args,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        **kwargs,
    ):
        self._build(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend)


@MODELS.register_module()
class SVT(TwinsBackbone, twins.SVT):
    """mmseg's ``SVT`` (Twins), whose blocks 0, 2 and so on attend within windows: see ``PCPVT``."""

    merges_apart = False

    def __init__(
        self,
        *args,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        **kwargs,
    ):
        self._build(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend)


for _stock, _ours in ((twins.PCPVT, PCPVT), (twins.SVT, SVT)):
    twin_of(_stock)(backbone_twin(_ours))
