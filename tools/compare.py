"""Accuracy and speed of several token reductions of one trained model, side by side."""
import argparse
import json
import logging
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from mmtr.analysis.compare import compare_on_test_data, markdown_table
from mmtr.engine.configs import load_config, read_reductions
from mmtr.engine.data_check import check_data
from mmtr.engine.model import build_model, load_weights
from mmtr.errors import command


def parse_args():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the plain model, with its test data')
    parser.add_argument('checkpoint')
    parser.add_argument('reductions', help="Python file with reductions = dict(name=dict(type='TokenAdapter', ...))")
    parser.add_argument('--out', help='write results to OUT.json and OUT.md')
    parser.add_argument('--threads', type=int, help='CPU threads of torch')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config')
    return parser.parse_args()


@command
def main():
    """Measure and print."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    cfg = load_config(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    reductions = {'plain': None, **read_reductions(args.reductions)}
    check_data(cfg, ('test_dataloader',))
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    model = build_model(cfg)
    load_weights(model, args.checkpoint)
    model.to(args.device)
    results = compare_on_test_data(cfg, model, reductions)
    for name, result in results.items():
        result['token_reduction'] = reductions[name]
    table = markdown_table(results)
    print(table)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(f'{args.out}.json').write_text(json.dumps(results, indent=1, default=float))
        Path(f'{args.out}.md').write_text(table + '\n')


if __name__ == '__main__':
    main()
