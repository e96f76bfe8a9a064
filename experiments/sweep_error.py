"""How far predictions by a sweep are from what is measured: 20 settings of six methods, in turns beside plain.

Example: experiments/sweep_error.py configs/segmenter_vit-t_camvid.py --shape 360 480 sweep.json
"""

import argparse

import torch

from mmtr.analysis.prediction import read_sweep
from mmtr.analysis.speed import interleave
from mmtr.apis import apply_token_reduction
from mmtr.cli.measuring import add_machine, positive, use_machine
from mmtr.config.files import load_config
from mmtr.errors import UserError, command
from mmtr.inference.model import build_model, image_channels
from mmtr.reducers.observer import reducer_of
from mmtr.words import markdown_rows

#: For a backbone of 12 layers.
SETTINGS = [
    dict(type='TokenAdapter', ratio=0.2, layers=(2, 12)),
    dict(type='TokenAdapter', ratio=0.3, layers=(5, 12)),
    dict(type='TokenAdapter', ratio=0.4, layers=(2, 12), metric='euclidean'),
    dict(type='TokenAdapter', ratio=0.5, layers=(0, 12), score='alternating'),
    dict(type='GridPool', ratio=0.2, layers=(5, 12)),
    dict(type='GridPool', ratio=0.5, layers=(5, 12)),
    dict(type='GridPool', ratio=0.5, layers=(2, 12)),
    dict(type='GridPool', ratio=0.6, layers=(0, 12)),
    dict(type='ToMe', r=0.3),
    dict(type='ToMe', r=0.5, layers=(3, 12)),
    dict(type='ToMe', mode='progressive', r=0.06),
    dict(type='ToMe', mode='progressive', r=0.12, layers=(2, 12)),
    dict(type='ToMe', mode='progressive', r=40),
    dict(type='EViT', keep_rate=0.8),
    dict(type='EViT', keep_rate=0.5, layers=(2, 5, 8)),
    dict(type='Random', ratio=0.5),
    dict(type='Random', ratio=0.8, layer=1),
    dict(type='Expediting', grid=0.7),
    dict(type='Expediting', grid=0.5, layer=2),
    dict(type='Expediting', grid=0.4, layer=0),
]


@command
def main() -> None:
    """Measure, and print a table with the error of each prediction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a plain ViT of 12 layers')
    parser.add_argument('sweep', help='file of tools/benchmark.py --sweep in float32, batch of 1')
    parser.add_argument('--shape', nargs=2, type=positive, required=True, metavar=('H', 'W'), help='pixels')
    parser.add_argument('--repeats', type=positive, default=10, help='timed rounds')
    add_machine(parser)
    args = parser.parse_args()
    use_machine(args)
    model = apply_token_reduction(build_model(load_config(args.config), args.device), None)
    backbone, sweep = model.backbone, read_sweep(args.sweep)
    same = dict(shape=args.shape, batch_size=1, dtype='float32', compiled=False, device=args.device)
    if other := sweep.mismatch(backbone, **same):
        raise UserError(f"'{args.sweep}' was measured with {other}: measure it anew.")
    images = torch.randn(1, image_channels(model), *args.shape).to(args.device)

    def forward(reduction):
        reducer = backbone.build_reducer(reduction).to(args.device).eval()

        def call():
            with torch.inference_mode(), reducer_of(backbone, reducer):
                backbone(images)

        return call

    timings = interleave({k: forward(r) for k, r in enumerate([None, *SETTINGS])}, args.repeats)
    rows, errors = [('method', 'settings', 'predicted', 'measured', 'error')], []
    for k, reduction in enumerate(SETTINGS, 1):
        predicted = sweep.predict(reduction, backbone.build_reducer(reduction)).speed_up
        measured = timings[0].median / timings[k].median
        errors.append(predicted / measured - 1)
        words = ', '.join(f'{key} {value}' for key, value in reduction.items() if key != 'type')
        rows.append((reduction['type'], words, f'{predicted:.2f}x', f'{measured:.2f}x', f'{errors[-1]:+.1%}'))
    print(markdown_rows(rows, words=(0, 1)))
    print(
        f'\nPlain: {1e3 * timings[0].median:.1f} ms, in the sweep {sweep.plain_ms:.1f} ms. Largest error '
        f'{max(map(abs, errors)):.1%}, mean {sum(map(abs, errors)) / len(errors):.1%}. {sweep.place}.'
    )


if __name__ == '__main__':
    main()
