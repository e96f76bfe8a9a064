"""Test a healed model where it was not healed: python experiments/healed_elsewhere.py CONFIG CHECKPOINT START

CONFIG has a HealingHook, CHECKPOINT is its training's, START what that started from. Both are tested with the reduction
of CONFIG, weaker, stronger and others, in images as large as in training and half as large again.
"""

import argparse
import copy
import logging

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmtr.analysis.compare import build_evaluator
from mmtr.apis import apply_token_reduction
from mmtr.inference.model import build_model, load_weights


def miou(cfg: Config, model: nn.Module, scale: float) -> float:
    """Compute the mIoU on the test data, of images enlarged by ``scale``, in per cent."""
    loader = copy.deepcopy(cfg.test_dataloader)
    if scale != 1:
        loader.dataset.pipeline.insert(1, dict(type='Resize', scale_factor=scale))
    loader.update(num_workers=0, persistent_workers=False)
    loader = Runner.build_dataloader(loader)
    evaluator = build_evaluator(cfg.test_evaluator, loader.dataset.metainfo)
    with torch.inference_mode():
        for batch in loader:
            evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
    return evaluator.evaluate(len(loader.dataset))['mIoU']


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('config', 'checkpoint', 'start'):
        parser.add_argument(name)
    parser.add_argument('--cfg-options', nargs='*', default=[])
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(dict(option.split('=', 1) for option in args.cfg_options))
    init_default_scope('mmseg')
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    own = dict(cfg.model.backbone.token_reduction)
    healed, start = build_model(cfg), apply_token_reduction(build_model(cfg), None)
    load_weights(healed, args.checkpoint)
    load_weights(start, args.start)
    code = healed.backbone.token_reducer.restoration
    settings = {
        'as healed': own,
        'no reduction': None,
        'its code left out': {**own, 'restore': 'residual'},
        'ratio 0.5': {**own, 'ratio': 0.5},
        'ratio 0.75': {**own, 'ratio': 0.75},
        'GridPool': dict(type='GridPool', layers=own['layers'], ratio=own['ratio'], restore='learned'),
        'ToMe progressive, r 0.2': dict(type='ToMe', mode='progressive', r=0.2, restore='learned'),
    }
    print('| tested with | start | healed | start, 1.5 times the size | healed |\n|---|---:|---:|---:|---:|')
    for name, setting in settings.items():
        cells = []
        for scale in (1.0, 1.5):
            for model in (start, healed):
                apply_token_reduction(model, setting)
                if model is healed and (setting or {}).get('restore') == 'learned':
                    model.backbone.token_reducer.restoration.load_state_dict(code.state_dict())
                cells.append(miou(cfg, model, scale))
        print(f'| {name} | ' + ' | '.join(f'{cell:.2f}' for cell in cells) + ' |', flush=True)


main()
