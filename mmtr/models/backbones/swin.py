"""The SwinTransformer of mmseg and mmdet with fused attention and token reduction."""
import math

from mmengine.model import ModuleList
from mmengine.runner import CheckpointLoader
from mmseg.models.backbones import swin

from mmtr.converters import swin as official
from mmtr.errors import UserError
from mmtr.models.swin import reducible_stage
from mmtr.models.twins import share, twin_of
from mmtr.ops.attention import check_backend
from mmtr.ops.resize import resize_relative_positions
from mmtr.reducers import BackboneShape, TokenReducer, build_token_reducer
from mmtr.reducers.base import NOTHING
from mmtr.reducers.windowed import Windowed
from mmtr.registry import MODELS


@MODELS.register_module()
class SwinTransformer(swin.SwinTransformer):
    """mmseg's ``SwinTransformer``, which is mmdet's too: same arguments, weights and outputs, and more keys.

    Args:
        token_reduction: ``dict(type=..., stage=..., **settings)`` of a token reducer; None: the stock model.
            Tokens are reduced within each window of one stage, counted from 1 as in the papers (None: the one
            with most blocks), and given back before the next. Its layers are the blocks of that stage, from 0.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        convert_weights: mmdet's key for official weights to start from. They are known by their names here,
            whatever it says.
        args, kwargs: mmseg's.

    Raises:
        UserError: The reducer, its stage or one of its settings does not exist or cannot work; the backend
            cannot run here; ``pretrained`` does not fit.
    """

    def __init__(self, *args, token_reduction=None, attn_backend='auto', convert_weights=False, **kwargs):
        super().__init__(*args, **kwargs)
        self._make_reducible(attn_backend)
        self.set_token_reduction(token_reduction)

    def _make_reducible(self, attn_backend):
        check_backend(attn_backend)
        self.stages = ModuleList(reducible_stage(stage, attn_backend) for stage in self.stages)

    @property
    def patch_size(self) -> int:
        """Side of a patch of the first stage, in pixels."""
        return self.patch_embed.projection.kernel_size[0]

    def set_token_reduction(self, token_reduction) -> None:
        """Use another reducer, ``dict(type=..., stage=..., **settings)``, or None."""
        self.token_reducer = self.build_reducer(token_reduction)

    def build_reducer(self, token_reduction) -> TokenReducer:
        """The reducer of a value of the key ``token_reduction``, for this backbone."""
        settings, stage = token_reduction, None
        if isinstance(token_reduction, dict):
            settings = dict(token_reduction)
            stage = settings.pop('stage', None)
        depths = [len(stage.blocks) for stage in self.stages]
        if stage is None:
            stage = depths.index(max(depths)) + 1
        if isinstance(stage, bool) or stage not in range(1, len(depths) + 1):
            raise UserError(f'token_reduction.stage={stage!r} does not exist: choose 1 to {len(depths)}, the stages of '
                            'this Swin.')
        attn = self.stages[stage - 1].blocks[0].attn.w_msa
        reducer = build_token_reducer(settings, BackboneShape(
            depth=depths[stage - 1], embed_dims=attn.embed_dims, num_prefix=0, grid=tuple(attn.window_size),
            stage=int(stage)))
        return reducer if settings is None else Windowed(reducer)

    def train(self, mode=True):
        """As stock, and returns the module as ``nn.Module.train`` does."""
        super().train(mode)
        return self

    def forward(self, x):
        """(B, 3, height, width) pixels -> list of (B, C, H, W), one for each of ``out_indices``."""
        x, grid = self.patch_embed(x)
        # Inside a jit trace, as fvcore and the ONNX exporter make, sizes are tensors; windows are counted with ints.
        grid = int(grid[0]), int(grid[1])
        x = self.drop_after_pos(x + self.absolute_pos_embed if self.use_abs_pos_embed else x)
        outs = []
        for i, stage in enumerate(self.stages):
            reducer = self.token_reducer if self.token_reducer.backbone.stage == i + 1 else NOTHING
            x, next_grid, out, _ = stage(x, grid, reducer)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(out)
                outs.append(out.transpose(1, 2).unflatten(2, grid).contiguous())
            grid = next_grid
        return outs

    def token_schedule(self, shape) -> list[int]:
        """Tokens that each block computes on for an image of ``shape`` (H, W) pixels, padding not counted."""
        grid = tuple(-(-n // self.patch_size) for n in shape)
        schedule = []
        for i, stage in enumerate(self.stages):
            reducer = self.token_reducer if self.token_reducer.backbone.stage == i + 1 else NOTHING
            schedule += reducer.token_schedule(grid, len(stage.blocks))
            grid = tuple(-(-n // 2) for n in grid)
        return schedule

    def init_weights(self):
        """As stock; weights to start from may be official ones too, and must be this Swin's."""
        if self.init_cfg is None:
            super().init_weights()
        else:
            self._load_pretrained(self.init_cfg['checkpoint'])
        self.token_reducer.init_weights()

    def _load_pretrained(self, path):
        state = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        state = state.get('state_dict', state.get('model', state))
        state = {key.removeprefix('module.'): value for key, value in state.items()}
        if any(key.startswith('backbone.') for key in state):
            state = {key.removeprefix('backbone.'): v for key, v in state.items() if key.startswith('backbone.')}
        if official.is_official(state):
            state, _ = official.convert(state)
        own = self.state_dict()
        # The classifier and norms of stages that are no output are unused, masks and indices computed.
        state = {key: value for key, value in state.items()
                 if (key in own or not key.startswith(('head.', 'norm')))
                 and not key.endswith(('attn_mask', 'position_index'))}
        for key in [key for key in state if key.endswith('relative_position_bias_table') and key in own]:
            sides = ((math.isqrt(len(table)) + 1) // 2 for table in (state[key], own[key]))
            state[key] = resize_relative_positions(state[key], *((side, side) for side in sides))
        needed = {key for key in own if not key.startswith(('norm', 'token_reducer.')) and 'position_index' not in key}
        differing = sorted(needed - state.keys()) + sorted(
            key for key in state if key not in own or own[key].shape != state[key].shape)
        if differing:
            raise UserError(f"Checkpoint '{path}' is not of this Swin: it differs in {len(differing)} weights "
                            f'({", ".join(differing[:3])}{", ..." if len(differing) > 3 else ""}).')
        self.load_state_dict(state, strict=False)


@twin_of('mmseg.models.backbones.swin.SwinTransformer')
@twin_of('mmdet.models.backbones.swin.SwinTransformer')
def _twin(module, attn_backend):
    twin = share(SwinTransformer, module)
    twin._make_reducible(attn_backend)
    twin.set_token_reduction(None)
    return twin
