"""Measure which classes a trained pruner keeps to the end, and where the model errs: ... CONFIG CHECKPOINT.

The script runs every tenth validation image. The label of a patch is the one at its corner, as in the training of
auxiliary heads.
"""

import sys

import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmtr.config.files import load_config
from mmtr.inference.model import build_model, load_weights
from mmtr.tokens import Tokens

config, checkpoint = sys.argv[1:]
cfg = load_config(config)
init_default_scope('mmseg')
cfg.val_dataloader.update(num_workers=0, persistent_workers=False)
cfg.val_dataloader.dataset.indices = list(range(0, 101, 10))
model = build_model(cfg)
load_weights(model, checkpoint)
model.eval()
reducer, kept = model.backbone.token_reducer, {}
before_layer, last = reducer.before_layer, len(model.backbone.layers) - 2


def note(i: int, tokens: Tokens) -> Tokens:
    """Record the patches that are left in the layer before the last."""
    tokens = before_layer(i, tokens)
    if i == last:
        kept['index'] = tokens.index[0]
    return tokens


reducer.before_layer = note
loader = Runner.build_dataloader(cfg.val_dataloader)
classes, patch = loader.dataset.metainfo['classes'], model.backbone.patch_size
counts, wrong, labelled = torch.zeros(2, len(classes)), torch.zeros(2), torch.zeros(2)
for data in loader:
    with torch.inference_mode():
        (sample,) = model.test_step(data)
    label = sample.gt_sem_seg.data.cpu()
    grid = [-(-n // patch) for n in label.shape[1:]]
    corners = F.interpolate(label[None].float(), grid, mode='nearest').flatten().long()
    keeps = torch.zeros(len(corners), dtype=torch.bool).index_fill(0, kept['index'], True)
    counts += torch.stack(
        [torch.bincount(part[part < len(classes)], minlength=len(classes)) for part in (corners, corners[keeps])]
    )
    in_kept = F.interpolate(keeps.view(1, 1, *grid).float(), scale_factor=patch)[
        0, :, : label.shape[1], : label.shape[2]
    ]
    for i, where in enumerate((in_kept == 1, in_kept == 0)):
        where &= label != 255
        wrong[i] += (sample.pred_sem_seg.data.cpu() != label)[where].sum()
        labelled[i] += where.sum()
shares = 100 * counts / counts.sum(1, keepdim=True)
for name, (everywhere, left) in zip(classes, shares.T.tolist()):
    print(f'{name:12} {everywhere:5.1f} % of all patches, {left:5.1f} % of those kept')
print('Wrong pixels: {:.1f} % in kept patches, {:.1f} % in the others'.format(*(100 * wrong / labelled).tolist()))
