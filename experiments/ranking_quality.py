"""Measure which share of a model's entropy and wrong pixels lies in the half of the patches that Cropr ranks higher.

ranking_quality.py CONFIG CHECKPOINT runs every fifth validation image and drops nothing. A random ranking has 0.50.
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
cfg.val_dataloader.dataset.indices = list(range(0, 101, 5))
cfg.model.backbone.token_reduction.r = 0
model = build_model(cfg)
load_weights(model, checkpoint)
model.eval()
reducer, patch, scores = model.backbone.token_reducer, model.backbone.patch_size, {}


def note(i: int, tokens: Tokens) -> Tokens:
    """Record the score by which each layer would drop patches."""
    if i - 1 in reducer.layers:
        scores[i - 1] = reducer.score(i - 1, tokens)[0]
    return tokens


reducer.before_layer = note
shares = {layer: torch.zeros(4) for layer in reducer.layers}
loader = Runner.build_dataloader(cfg.val_dataloader)
for data in loader:
    with torch.inference_mode():
        data = model.data_preprocessor(data)
        logits = model.decode_head(model.backbone(data['inputs']))
    size = [patch * n for n in logits.shape[2:]]
    logits = F.interpolate(logits, size, mode='bilinear')
    chances = logits.softmax(1)
    label = data['data_samples'][0].gt_sem_seg.data
    label = F.pad(label, (0, size[1] - label.shape[2], 0, size[0] - label.shape[1]), value=255)
    unsure = -torch.xlogy(chances, chances).sum(1, keepdim=True)
    wrong = ((logits.argmax(1) != label) & (label != 255)).float()[None]
    unsure, wrong = (F.avg_pool2d(each, patch).flatten() for each in (unsure, wrong))
    for layer, score in scores.items():
        pairs = [(ranking, amount) for ranking in (score, unsure) for amount in (unsure, wrong)]
        for column, (ranking, amount) in enumerate(pairs):
            upper = ranking.topk(len(ranking) // 2).indices
            shares[layer][column] += amount[upper].sum() / amount.sum() / len(loader)
print('layer   its entropy   wrong pixels   ranked by that entropy: entropy   wrong pixels')
for layer, of in shares.items():
    print(f'{layer:5}   {of[0]:11.2f}   {of[1]:12.2f}   {of[2]:31.2f}   {of[3]:12.2f}')
