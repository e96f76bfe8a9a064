"""The smallest model with the parts of an EoMT, and runs of it by mmengine's own runner."""

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmtr.models.backbones import DINOv2
from tests.conftest import RUNS

IMAGES = [torch.ones(3, 28, 28) * i / 8 for i in range(4)]


class Head(nn.Module):
    """Queries, and what the probability of their masks is in each forward pass."""

    def __init__(self, layers):
        super().__init__()
        self.query = nn.Embedding(2, 8)
        self.register_buffer('mask_probs', torch.zeros(layers), persistent=False)
        self.seen = []

    def forward(self, x):
        self.seen.append(self.mask_probs.tolist())
        return (self.query.weight @ x.flatten(2)).square().mean()


class TinyEoMT(BaseModel):
    """A DINOv2 of four layers with the head."""

    def __init__(self, layers=3):
        super().__init__()
        self.backbone = DINOv2(img_size=28, embed_dims=8, num_layers=4, num_heads=2, num_registers=4)
        self.panoptic_head = Head(layers)

    def forward(self, *images, mode='tensor'):
        return dict(loss=self.panoptic_head(self.backbone(torch.stack(images))[0]))


class RateHook(Hook):
    """Notes the learning rate of each parameter, by name, in each iteration."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
        groups = runner.optim_wrapper.optimizer.param_groups
        self.seen.append({names[id(p)]: group['lr'] for group in groups for p in group['params']})


def run_of(folder, model, hooks=(), loop=None, resume=False, **settings):
    """A runner of ``model``, of two images a step, with checkpoints every third step."""
    return Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=IMAGES,
            # Loops of iterations pause for seconds at the end of a finite one.
            sampler=dict(type='InfiniteSampler' if loop is None else 'DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=loop or dict(type='IterBasedTrainLoop', max_iters=12),
        optim_wrapper=settings.pop('optim_wrapper', dict(optimizer=dict(type='AdamW', lr=1e-3))),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)),
        custom_hooks=list(hooks),
        resume=resume,
        default_scope='mmengine',
        log_level='ERROR',
        experiment_name=f'run_{next(RUNS)}',
        **settings,
    )
