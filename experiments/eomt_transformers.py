"""Time EoMT-L of transformers, eager and fused, beside ours, in turns: the same random weights, one image of 640x640.

Usage: PYTHONPATH=.venv-openmmlab/hf python experiments/eomt_transformers.py, after make test-tools.
"""

import argparse

import torch
from mmengine.config import ConfigDict

from mmtr.analysis.speed import interleave, machine
from mmtr.converters import eomt
from mmtr.registry import MODELS
from mmtr.words import aligned_rows

PARTS = ('backbone.', 'panoptic_head.')


def settings_of(notes, part):
    """Settings of one part of the model."""
    return {name[len(part) :]: value for name, value in notes.settings.items() if name.startswith(part)}


def main():
    """Run the command line."""
    # Here, so that the command can be read where transformers is not installed.
    from transformers import EomtConfig, EomtForUniversalSegmentation

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--size', type=int, default=640)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = EomtConfig(image_size=args.size, num_labels=133, num_queries=200)
    theirs = EomtForUniversalSegmentation._from_config(config, attn_implementation='eager').eval()
    theirs.attn_mask_probs.fill_(0.0)  # as in inference: no masks
    weights, notes = eomt.convert(theirs.state_dict())
    backbone, head = (settings_of(notes, part) for part in PARTS)
    ours = MODELS.build(
        ConfigDict(
            type='mmtr.EoMT',
            backbone=dict(type='mmtr.DINOv2', **backbone),
            panoptic_head=dict(type='mmtr.EoMTHead', **head),
        )
    ).eval()
    ours.load_state_dict(weights)
    x = torch.rand(1, 3, args.size, args.size) * 255
    normal = (x - ours.mean) / ours.std

    def run(kind):
        with torch.inference_mode():
            if kind == 'mmtr':
                return ours.panoptic_head(ours.extract_feat(x))[1][-1]
            theirs.set_attn_implementation(kind.rpartition(' ')[2])
            return theirs(normal).masks_queries_logits

    kinds = ('transformers, eager', 'transformers, sdpa', 'mmtr')
    expected = run(kinds[0])
    for kind in kinds[1:]:
        print(f'{kind}: masks differ by at most {(run(kind) - expected).abs().max():.1e} of {expected.abs().max():.1f}')
    times = interleave({kind: lambda kind=kind: run(kind) for kind in kinds}, args.repeats)
    first = times[kinds[0]].median
    rows = [[kind, f'{1e3 * times[kind].median:.0f}', f'{first / times[kind].median:.2f}x'] for kind in kinds]
    print(aligned_rows([['', 'ms/image', 'times as fast'], *rows]))
    print(f'EoMT-L, {args.size}x{args.size}, median of {args.repeats} in turns; {machine()}')


if __name__ == '__main__':
    main()
