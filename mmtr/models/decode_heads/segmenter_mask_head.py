"""mmseg's Segmenter mask head with fused attention and token reduction."""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from mmengine.model import ModuleList
from mmseg.models.decode_heads import segmenter_mask_head as stock
from torch import Tensor

from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.models.backbones.common.layer import run_layer
from mmtr.models.backbones.common.twins import replace_with_twins
from mmtr.models.backbones.vit import reducible
from mmtr.ops.attention import check_backend
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.registry import MODELS
from mmtr.tokens import Tokens


@MODELS.register_module()
class SegmenterMaskTransformerHead(Declared, stock.SegmenterMaskTransformerHead):
    """mmseg's ``SegmenterMaskTransformerHead`` with two more arguments; its weights and outputs are mmseg's.

    Args:
        token_reduction: ``dict(type=..., **settings)`` of a token reducer for the head's own layers, with the class
            embeddings as prefix tokens; None: no reduction.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        args, kwargs: mmseg's.

    Raises:
        UserError: The reducer or a setting does not exist, or has a value that is not allowed; the method needs a class
            token or ``restore_at='after_head'``, which a head cannot have; the attention backend cannot run here.
    """

    def __init__(self, *args, token_reduction: Optional[dict] = None, attn_backend: str = 'auto', **kwargs):
        super().__init__(*args, **kwargs)
        check_backend(attn_backend)
        self.token_reducer = None
        if token_reduction is None:
            replace_with_twins(self.layers, attn_backend)
            return
        self.token_reducer = build_token_reducer(
            token_reduction,
            BackboneInfo(depth=len(self.layers), embed_dims=self.cls_emb.shape[-1], num_prefix=self.num_classes),
        )
        if self.token_reducer.needs_class_token:
            raise UserError(
                f'decode_head.token_reduction.type={type(self.token_reducer).__name__!r} reads the class '
                'token, which only a backbone has: choose another method for the head.'
            )
        if self.token_reducer.restore_at == 'after_head':
            raise UserError(
                "decode_head.token_reduction.restore_at='after_head' is for a backbone: a head's own "
                "tokens are given back in it; set restore_at='before_norm'."
            )
        self.layers = ModuleList(reducible(layer, attn_backend) for layer in self.layers)

    def init_weights(self) -> None:
        """Initialise the weights as the stock class, and those of the reducer."""
        super().init_weights()
        if self.token_reducer is not None:
            self.token_reducer.init_weights()

    @property
    def takes_reduced_tokens(self) -> bool:
        """Whether the head can run on reduced tokens of a backbone, see ``reduced_outputs.takes_reduced_tokens``."""
        return self.token_reducer is None

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Predict class logits from the feature maps of the backbone.

        Args:
            inputs: Feature maps, of which ``in_index`` selects one (B, C, H, W).

        Returns:
            (B, classes, H, W).

        Raises:
            UserError: The batch is empty.
        """
        x = self._transform_inputs(inputs)
        if x.shape[0] == 0:
            raise UserError('The batch has no image: give the mask head at least one.')
        if self.token_reducer is None:
            return super().forward(inputs)
        grid = (int(x.shape[2]), int(x.shape[3]))
        x = self.dec_proj(x.flatten(2).transpose(1, 2))
        tokens = Tokens(torch.cat([self.cls_emb.expand(x.shape[0], -1, -1), x], 1), grid, num_prefix=self.num_classes)
        for i, layer in enumerate(self.layers):
            tokens = run_layer(layer, tokens, self.token_reducer, i)
        tokens = self.token_reducer.restore(tokens)
        tokens = tokens.replace(x=self.decoder_norm(tokens.x))
        patches = F.normalize(self.patch_proj(tokens.patches), dim=2)
        classes = F.normalize(self.classes_proj(tokens.prefix), dim=2)
        return self.mask_norm(patches @ classes.transpose(1, 2)).transpose(1, 2).unflatten(2, tokens.grid)
