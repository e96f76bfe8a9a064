"""Time the whole test step with mmtr.EncoderDecoder's way to labels and with mmseg's, in turns, and compare the labels.

python experiments/test_step.py CONFIG CHECKPOINT        on the config's test images (--cfg-options says where)
python experiments/test_step.py CONFIG --shape 640 640   random weights, on noise
"""

import argparse
import copy
import logging
from functools import partial
from itertools import cycle, islice
from typing import Callable

import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample

from mmtr.analysis.speed import interleave, machine
from mmtr.config.files import add_options, load_config, merge_options
from mmtr.inference.model import build_model, load_weights

parser = argparse.ArgumentParser()
parser.add_argument('config')
parser.add_argument('checkpoint', nargs='?')
parser.add_argument('--shape', nargs=2, type=int)
parser.add_argument('--images', type=int, default=100)
parser.add_argument('--repeats', type=int, default=40)
add_options(parser)
args = parser.parse_args()
MMLogger.get_instance('mmengine', log_level=logging.ERROR)
cfg = load_config(args.config)
merge_options(cfg, args.cfg_options)
init_default_scope('mmseg')
torch.manual_seed(0)
if args.checkpoint is None:
    cfg.model.pretrained = None
model = build_model(cfg).eval()
if args.checkpoint is None:
    meta = dict.fromkeys(('img_shape', 'pad_shape', 'ori_shape'), tuple(args.shape))
    batches = [
        dict(
            inputs=[torch.randint(256, (3, *args.shape), dtype=torch.uint8)],
            data_samples=[SegDataSample(metainfo=meta)],
        )
    ]
else:
    load_weights(model, args.checkpoint)
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    batches = list(islice(Runner.build_dataloader(cfg.test_dataloader), args.images))
ways = dict(mmseg=partial(EncoderDecoder.predict, model), mmtr=model.predict)


def labels(way: str, batch: dict) -> list[torch.Tensor]:
    """Predict the label maps of a batch with one of ``ways``."""
    model.predict = ways[way]
    return [sample.pred_sem_seg.data for sample in model.test_step(copy.deepcopy(batch))]


def step(way: str) -> Callable[[], object]:
    """Build a callable that tests the next image at each call."""
    images = cycle(batches)
    return lambda: labels(way, next(images))


with torch.inference_mode():
    differing = sum(
        int((one != other).sum())
        for batch in batches
        for one, other in zip(labels('mmseg', batch), labels('mmtr', batch))
    )
    times = interleave({way: step(way) for way in ways}, args.repeats)
print(f'{args.config}: {len(batches)} images, {differing} labels differ')
for way, time in times.items():
    print(
        f'{way}: median {1e3 * time.median:.1f} ms, quartiles {1e3 * time.quartiles[0]:.1f} and '
        f'{1e3 * time.quartiles[1]:.1f}, fastest {1e3 * min(time.seconds):.1f}'
    )
# Other processes on the machine slow some rounds down, so the fastest rounds are the most reliable.
for name, of in (
    ('medians', lambda time: time.median),
    ('lower quartiles', lambda time: time.quartiles[0]),
    ('fastest', lambda time: min(time.seconds)),
):
    print(f'{of(times["mmseg"]) / of(times["mmtr"]):.2f}x by the {name}')
used = machine()
print(f'{used["cpu"]}, {used["threads"]} threads, torch {used["torch"]}')
