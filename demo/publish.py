"""Reduce a checkpoint to what a test needs: its weights in half precision, and the names of the classes."""

import argparse
import os
from pathlib import Path

import torch

from mmtr.errors import UserError, command
from mmtr.weights.files import read_checkpoint


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='written by tools/train.py')
    parser.add_argument('out', type=Path)
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.checkpoint, map_location='cpu')
    if 'state_dict' not in checkpoint or 'dataset_meta' not in checkpoint.get('meta', {}):
        raise UserError(f"'{args.checkpoint}' was not written by tools/train.py: it lacks state_dict or dataset_meta.")
    weights = {
        name: value.half() if value.is_floating_point() else value for name, value in checkpoint['state_dict'].items()
    }
    # Written atomically: a full disk must not destroy the existing file.
    work = args.out.with_name(args.out.name + '.part')
    try:
        torch.save(dict(state_dict=weights, meta=dict(dataset_meta=checkpoint['meta']['dataset_meta'])), work)
        os.replace(work, args.out)
    finally:
        work.unlink(missing_ok=True)
    print(f'{args.out}: {args.out.stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__':
    main()
