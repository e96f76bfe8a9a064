"""Count the cost of the deployed model of a config: multiply-adds, parameters, tokens."""

import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Optional

import torch
from mmengine.config import Config
from torch import nn

from mmtr.analysis.flops import count_flops, schedule_in_words, token_schedule
from mmtr.analysis.shapes import ShapesOnly
from mmtr.config.model import model_of
from mmtr.errors import UserError
from mmtr.inference.model import build_model
from mmtr.registry import TOKEN_REDUCERS

#: Keys of a config that do not change the cost of the deployed model.
_FREE = ('pretrained', 'init_cfg', 'train_cfg', 'test_cfg', 'data_preprocessor', 'loss_decode', 'distillation')


@dataclass(frozen=True)
class Cost:
    """Cost of a model.

    Args:
        gflops: 10^9 multiply-adds of one image; None if they depend on the image.
        parameters: Number of parameters of the deployed model.
        trained: Number of those that are trained.
        schedule: Patch tokens of each layer; None for a backbone without a reducer.
    """

    gflops: Optional[float]
    parameters: int
    trained: int
    schedule: Optional[list[int]]


class _DenseParts(nn.Module):
    """A detector up to its proposals, whose number depends on the image."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, images):
        return self.detector.rpn_head(self.detector.extract_feat(images))


def pixels_of(cfg: Config) -> tuple[int, int]:
    """Return the input size (H, W) of a model in training, in pixels: of crops, padded batches, or ``img_size``."""
    augments = (model_of(cfg).get('data_preprocessor') or {}).get('batch_augments') or []
    padded = [augment.get('size') for augment in augments if isinstance(augment, dict)]  # of mmpretrain, one dict
    size = next(filter(None, (cfg.get('crop_size'), *padded, cfg.model.backbone.get('img_size'))))
    return (size, size) if isinstance(size, int) else tuple(size)


def deployed(cfg: Config) -> Config:
    """Copy a config without the parts of the model that only training needs."""
    cfg = Config(cfg.to_dict())
    reduction = cfg.model.backbone.get('token_reduction')
    if reduction and 'deploy' in inspect.signature(TOKEN_REDUCERS.get(reduction.type)).parameters:
        reduction.deploy = True
    if 'distillation' in cfg.model:
        cfg.model.distillation = None
    return cfg


def cost(cfg: Config, pixels: tuple[int, int]) -> Cost:
    """Count the cost of the deployed model of a config, with random weights, for one image of ``pixels`` (H, W).

    Raises:
        UserError: An operator of the model cannot be counted.
    """
    model = build_model(deployed(cfg))
    reducer = getattr(model.backbone, 'token_reducer', None)
    images = torch.zeros(1, 3, *pixels).normal_(generator=torch.Generator().manual_seed(0))
    gflops = None
    if reducer is None or reducer.fixed_count or reducer.trained:
        with torch.no_grad(), ExitStack() as stack:
            if reducer is not None and not reducer.fixed_count:
                reducer.calibrate(lambda: model.backbone(images))
            else:
                stack.enter_context(ShapesOnly())
            flops = count_flops(_DenseParts(model) if hasattr(model, 'rpn_head') else model, images)
        if flops.unsupported:
            raise UserError(f"Not counted in config '{cfg.filename}': {', '.join(flops.unsupported)}.")
        gflops = flops.total / 1e9
    return Cost(
        gflops,
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        token_schedule(model.backbone, pixels),
    )


def identity(cfg: Config, pixels: tuple[int, int]) -> str:
    """Describe all that the cost of a config depends on: equal for configs of equal cost."""

    def without(node):
        if isinstance(node, dict):
            return {key: without(value) for key, value in sorted(node.items()) if key not in _FREE}
        return [without(value) for value in node] if isinstance(node, (list, tuple)) else node

    hooks = [hook for hook in cfg.get('custom_hooks', []) if 'token_reduction' in hook]
    return repr((without(cfg.model.to_dict()), hooks, pixels))


def tokens_in_words(found: Cost) -> str:
    """Format the column of tokens; long schedules are shortened in the middle."""
    if found.gflops is None:
        return 'by image'
    steps = schedule_in_words(found.schedule or []).split(', ')
    return ', '.join(steps if len(steps) <= 6 else [*steps[:2], '...', *steps[-2:]])
