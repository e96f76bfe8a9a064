"""Tiny stand-ins for what documented commands need: shrunk models, drawn data, made-up checkpoints."""

import json
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from mmtr.checks.data import datasets_in
from mmtr.config.files import load_config, merge_options, with_reduction
from mmtr.config.options import parse_settings
from mmtr.config.types import type_name
from mmtr.inference.model import build_model, without_pretrained

from .conftest import draw_data
from .drawn_coco import STUFF, draw_coco

ROOT = Path(__file__).parents[1]
PATCH = 2  # pixels of a patch, in place of 14 or 16: as many patches in a smaller image
SIZES = ('scale', 'scales', 'crop_size', 'size', 'img_scale', 'test_size')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')

#: Configs that a tool writes, beside those in work folders: what is as good.
WRITTEN = {'my_faster_model.py': 'segmenter_vit-t_tadapter_ade20k.py'}


def smaller(value, factor):
    """A size, or sizes within lists, divided by ``factor``."""
    if isinstance(value, (list, tuple)):
        return type(value)(smaller(each, factor) for each in value)
    return max(1, round(value / factor)) if isinstance(value, int) and not isinstance(value, bool) else value


def every_dict(node):
    """All dicts within ``node``."""
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from every_dict(value)


def shrink_model(model):
    """Make channels, heads and patches of a model's config few; the layers stay, of which settings speak.

    Gives the factor by which images get smaller.
    """
    backbone = model.backbone
    heads = [model[key] for key in ('decode_head', 'auxiliary_head') if model.get(key)]
    heads = [each for head in heads for each in (head if isinstance(head, list) else [head])]
    if 'Swin' in backbone.type:
        backbone.update(embed_dims=16, num_heads=[1, 2, 4, 8])
        widths, factor = [16, 32, 64, 128], 4
    elif 'MixVisionTransformer' in backbone.type:
        backbone.update(embed_dims=8)  # for each head
        widths, factor = [8 * heads for heads in backbone.num_heads], 4
    elif 'ResNet' in backbone.type:
        backbone.update(base_channels=16, stem_channels=16)
        widths, factor = [64, 128, 256, 512], 4
    else:
        widths, factor = [16] * 4, backbone.get('patch_size', 16) / PATCH
        backbone.update(embed_dims=16, num_heads=2, patch_size=PATCH)
        if 'img_size' in backbone:
            backbone.img_size = smaller(backbone.img_size, factor)
    for head in heads:
        many = isinstance(head.get('in_channels'), (list, tuple))
        head.in_channels = [widths[i] for i in head.in_index] if many else widths[head.get('in_index', -1)]
        head.update({key: 16 for key in ('channels', 'embed_dims') if key in head})
        head.update({key: 2 for key in ('num_heads',) if key in head})
    head = model.get('panoptic_head')
    if head:
        head.update(in_channels=16 if 'EoMT' in model.type else widths)
        if 'MaskDINO' in model.type:
            head.update(channels=64, num_queries=20)
            head.pixel_decoder.update(feedforward_channels=32)
            head.decoder.update(feedforward_channels=32)
            head.loss.update(num_points=64)
    if model.get('neck') and 'in_channels' in model.neck:
        model.neck.in_channels = widths if isinstance(model.neck.in_channels, list) else 16
    for part in every_dict([model.get('data_preprocessor'), model.get('test_cfg')]):
        part.update({key: smaller(part[key], factor) for key in ('size', 'crop_size', 'stride') if key in part})
        if part.get('pad_size_divisor', 1) > 100:  # a size of images, and no stride
            part.update(pad_size_divisor=smaller(part['pad_size_divisor'], factor))
    return factor


class StandIns:
    """Data of a kind each, drawn into ``folder`` when first asked for."""

    def __init__(self, folder):
        self.folder = folder

    def labels(self):
        """Images with label maps of four classes, in the folders of ADE20K."""
        if not (root := self.folder / 'labels').exists():
            draw_data(root, images=2)
        return root

    def masks(self):
        """Images with masks of 0 and 255."""
        if not (root := self.folder / 'masks').exists():
            draw_data(root, images=2)
            for path in root.glob('annotations/*/*.png'):
                Image.fromarray((np.array(Image.open(path)) > 1).astype(np.uint8) * 255).save(path)
        return root

    def coco(self, things, stuff):
        """A COCO set with all these classes, whose objects are of the first two, and its ground of two others."""
        root = self.folder / f'coco-{things[0]}-{len(things)}-{len(stuff)}'
        if not root.exists():
            draw_coco(root, counts=(1, 2))
            for path in root.glob('*.json'):
                content = json.loads(path.read_text())
                names = (*things, *stuff) if path.stem == 'panoptic' else things
                ids = {name: i for i, name in enumerate(names)}
                drawn = [ids[(2 * things)[0]], ids[(2 * things)[1]], *(ids.get(name) for name in stuff[:2])]
                for each in every_dict([content['annotations']]):
                    if 'category_id' in each:
                        each['category_id'] = drawn[each['category_id'] // 10 - 1]
                content['categories'] = [dict(id=i, name=name, isthing=int(name in things)) for name, i in ids.items()]
                path.write_text(json.dumps(content))
        return root

    def put_into(self, cfg, factor):
        """Let a config read drawn data of the kind of its own."""
        from mmdet.datasets import CocoDataset, CocoPanopticDataset

        root = None
        for loader in [cfg[name] for name in LOADERS if cfg.get(name)]:
            loader.update(num_workers=0, persistent_workers=False, batch_size=min(loader.get('batch_size', 1), 2))
            for data in datasets_in(loader.dataset):
                for step in every_dict(data.get('pipeline', [])):
                    step.update({key: smaller(step[key], factor) for key in SIZES if key in step})
                split = 'training' if loader is cfg.get('train_dataloader') else 'validation'
                if 'Coco' not in data.type:
                    masks = type_name(data.type) == 'BinaryDataset' and not data.get('foreground')
                    data.update(
                        data_root=str(self.masks() if masks else self.labels()),
                        ann_file='',
                        img_suffix='.png',
                        seg_map_suffix='.png',
                        data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
                    )
                    continue
                panoptic = 'Panoptic' in data.type
                meta = data.get('metainfo') or (CocoPanopticDataset if panoptic else CocoDataset).METAINFO
                things = meta.get('thing_classes', meta['classes'])
                root = self.coco(things, meta.get('stuff_classes', STUFF))
                data.update(data_root=str(root), ann_file='panoptic.json' if panoptic else 'instances.json')
                data.data_prefix = dict(img='images/', **(dict(seg='panoptic/') if panoptic else {}))
        for each in every_dict([cfg.get('val_evaluator'), cfg.get('test_evaluator')]):
            if root and 'ann_file' in each:
                each.ann_file = str(root / ('panoptic.json' if 'seg_prefix' in each else 'instances.json'))
            if root and 'seg_prefix' in each:
                each.seg_prefix = str(root / 'panoptic')


def shrink(cfg, data):
    """A config with a small model, drawn data and a training of one step; the same once more is the same.

    Configs of the demo, whose model is small and whose checkpoint is there, keep both, and read ``demo/data``.
    """
    if 'model' not in cfg or cfg.get('shrunk'):
        return cfg
    demo = cfg.model.get('backbone', {}).get('embed_dims') == 128
    if demo:
        for loader in [cfg[name] for name in LOADERS if cfg.get(name)]:
            loader.update(num_workers=0, persistent_workers=False)
    else:
        cfg.model = without_pretrained(cfg.model)
        factor = shrink_model(cfg.model)
        data.put_into(cfg, factor)
        for step in every_dict(cfg.get('tta_pipeline') or []):
            step.update({key: smaller(step[key], factor) for key in SIZES if key in step})
    cfg.load_from = None
    if 'rpn_head' in cfg.model:  # mmcv's nms takes no bfloat16, the half precision of a CPU
        cfg.optim_wrapper = dict(
            {key: value for key, value in cfg.optim_wrapper.items() if key not in ('dtype', 'loss_scale')},
            type='OptimWrapper',
        )
        cfg.model.train_cfg.rpn.allowed_border = -1  # a crop of a shrunk image may be smaller than every anchor
    if cfg.get('train_cfg'):
        steps = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
        cfg.train_cfg.update({steps: 1, 'val_interval': 1})
        cfg.train_cfg.pop('dynamic_intervals', None)
        if any('TwoStage' in str(each.get('type')) for each in every_dict([cfg.get('param_scheduler')])):
            cfg.param_scheduler = None  # its warm-ups are longer than a step
    cfg.shrunk = True
    return cfg


def config_of(argv):
    """The config that a command line names, with its settings; None if it names none."""
    config = next((word for word in argv if word.endswith('.py') and 'tools/' not in word), None)
    if config is None:
        return None
    name = WRITTEN.get(config, Path(config).name if config.startswith('work_dirs/') else None)
    if name and not Path(config).exists():
        Path(config).parent.mkdir(parents=True, exist_ok=True)
        Path(config).write_text(f"_base_ = 'mmtr::{name}'\n")
    cfg = load_config(config)
    merge_options(cfg, parse_settings(values(argv, '--cfg-options')))
    reduction = values(argv, '--token-reduction')
    if reduction:
        name, *settings = reduction
        merge_options(cfg, with_reduction(cfg, {'type': name, **parse_settings(settings)}))
    return cfg


def values(argv, option):
    """What follows an option, up to the next."""
    if option not in argv:
        return []
    after = argv[argv.index(option) + 1 :]
    return after[: next((i for i, word in enumerate(after) if word.startswith('--')), len(after))]


def write_checkpoints(argv, empty=False):
    """Write what a command line reads and nothing has written: its config, and weights that fit it, or none."""
    if {*argv} & {*WRITTEN}:
        config_of(argv)
    for word in argv:
        key, _, path = word.rpartition('=')
        if not path.endswith('.pth') or '/' in key or (Path(path).exists() and 'demo/' in path):
            continue
        cfg = config_of(argv)
        if cfg is None:
            continue
        teacher = cfg.model.get('teacher')
        if isinstance(teacher, str):  # in the work folder that has the name of its config
            write_checkpoints([f'configs/{Path(teacher).parent.name}.py', teacher])
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if empty:
            torch.save(dict(state_dict={}, meta={}), path)
            continue
        cfg.model.pop('pretrained', None)
        model = build_model(
            Config(
                dict(
                    model=without_pretrained(cfg.model),
                    default_scope=cfg.get('default_scope'),
                    custom_hooks=cfg.get('custom_hooks') or [],
                )
            )
        )
        model = model.backbone if key.endswith('pretrained') else model
        state = {
            name: value
            for name, value in model.state_dict().items()
            if not (key and name.removeprefix('backbone.').startswith(('peft.', 'token_reducer.')))
        }
        torch.save(dict(state_dict=state, meta={}), path)
