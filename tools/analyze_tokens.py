"""Measure token reduction in each layer, as figures: attention diversity, token similarity, tokens, time.

Example: tools/analyze_tokens.py configs/segmenter_vit-t_tadapter_camvid.py ckpt.pth --out work_dirs/analysis --maps
"""

import argparse
import json
import logging
import math
import shlex
import sys
from pathlib import Path
from typing import Any, Optional

import cv2
import torch
from mmengine import ProgressBar
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from mmtr.analysis.layers import analyze_layers
from mmtr.analysis.speed import machine
from mmtr.apis import apply_token_reduction
from mmtr.checks.data import check_data, images_in, loads_annotations
from mmtr.cli.measuring import add_machine, positive, use_machine
from mmtr.config.files import add_options, add_token_reduction, read_config, read_reductions
from mmtr.errors import UserError, command
from mmtr.files import write_text
from mmtr.inference.model import build_model, load_weights
from mmtr.reducers import TokenReducer
from mmtr.reducers.reduces import reduces
from mmtr.visualization import record_token_maps, seen_image, token_maps, token_picture
from mmtr.visualization.layers import draw_layers
from mmtr.words import aligned_rows


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--images', nargs='+', type=Path, help="files, or one folder; else the config's test data")
    parser.add_argument('--num-images', type=positive, default=4, help='how many of them, the first ones (default 4)')
    parser.add_argument(
        '--reductions',
        help="Python file with reductions = dict(name=dict(type='ToMe', ...)); "
        "else the config's own is compared with none",
    )
    parser.add_argument('--out', type=Path, required=True, help='folder for figures and layers.json')
    parser.add_argument('--maps', action='store_true', help='also draw the token maps of each image, to OUT/maps')
    parser.add_argument('--repeats', type=positive, default=5, help='timed runs of each image (default 5)')
    add_machine(parser)
    add_options(parser)
    add_token_reduction(parser)
    return parser.parse_args()


def find_images(cfg: Config, given: Optional[list[Path]], count: int) -> list[Path]:
    """Find the first ``count`` images of ``given``, files or one folder; None: of the config's test data.

    Raises:
        UserError: There are none, or one cannot be read.
    """
    if given is None:
        check_data(cfg, ('test_dataloader',))
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        files = [Path(dataset.get_data_info(i)['img_path']) for i in range(min(count, len(dataset)))]
    elif len(given) == 1 and given[0].is_dir():
        files = images_in(given[0])
    else:
        files = given
    files = files[:count]
    for path in files:
        if not path.is_file():
            raise UserError(f"The image '{path}' is not there.")
        if cv2.imread(str(path)) is None:
            raise UserError(f"'{path}' cannot be read as an image.")
    return files


@torch.inference_mode()
def backbone_inputs(cfg: Config, model: nn.Module, files: list[Path]) -> list[torch.Tensor]:
    """Compute the input of the backbone for each file, (1, 3, height, width); of a sliding window, the first."""
    pipeline = Compose([step for step in cfg.test_dataloader.dataset.pipeline if not loads_annotations(step)])
    inputs = []
    for path in files:
        # Run the whole test step, so that windows and padding are those of the test.
        with record_token_maps(model.backbone) as runs:
            model.test_step(pseudo_collate([pipeline(dict(img_path=str(path), img_id=0))]))
        inputs.append(runs[0][0])
    return inputs


def reducers_of(model: nn.Module, reductions: Optional[dict[str, Optional[dict]]]) -> dict[str, TokenReducer]:
    """Build the reducers by name: 'plain' first, then those of ``reductions``; without any, the model's own."""
    own = getattr(getattr(model, 'backbone', None), 'token_reducer', None)
    device = next(model.parameters()).device
    reducers = {
        name: apply_token_reduction(model, reduction).backbone.token_reducer.to(device).eval()
        for name, reduction in {'plain': None, **(reductions or {})}.items()
    }
    if not reductions and reduces(own):
        reducers[own.name] = own
    return reducers


def print_table(results: dict[str, dict]) -> None:
    """Print one line a reduction."""
    rows = [
        (
            'reduction',
            'tokens',
            'attention diversity',
            'lowest',
            'token similarity',
            'last',
            'layers ms',
            'restore ms',
            'backbone ms',
        )
    ]
    for name, result in results.items():
        layers = {key: [v for v in values if not math.isnan(v)] for key, values in result['layers'].items()}
        mean = {key: sum(values) / max(len(values), 1) for key, values in layers.items()}
        diversity, similarity = layers['attention_diversity'], layers['token_similarity']
        rows.append(
            (
                name,
                f'{mean["attention_tokens"]:.0f}',
                f'{mean["attention_diversity"]:.3f}',
                f'{min(diversity, default=math.nan):.3f}',
                f'{mean["token_similarity"]:.3f}',
                f'{similarity[-1] if similarity else math.nan:.3f}',
                f'{sum(layers["ms"]):.1f}',
                f'{result["restore_ms"]:.2f}',
                f'{result["backbone_ms"]:.1f}',
            )
        )
    print(aligned_rows(rows))


def draw_maps(
    model: nn.Module, reducers: dict[str, TokenReducer], files: list[Path], inputs: list[torch.Tensor], folder: Path
) -> None:
    """Draw the token maps of each image with each reducer that has some, to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, reducer in reducers.items():
        model.backbone.token_reducer = reducer
        for path, image in zip(files, inputs):
            maps = token_maps(model.backbone, image)
            if maps:
                drawn = token_picture(seen_image(model.data_preprocessor, image[0]), maps, model.backbone.patch_size)
                file = folder / f'{path.stem}_{name.replace("/", "_").replace(" ", "_")}.jpg'
                cv2.imwrite(str(file), drawn[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 92))


def without_nan(node: Any) -> Any:
    """Replace NaN, which JSON lacks, by None in nested lists and dicts."""
    if isinstance(node, dict):
        return {key: without_nan(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_nan(value) for value in node]
    return None if isinstance(node, float) and math.isnan(node) else node


@command
def main() -> None:
    """Measure, print and draw."""
    args = parse_args()
    use_machine(args)
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    cfg = read_config(args)
    reductions = read_reductions(args.reductions) if args.reductions else None
    if not cfg.get('model') or not cfg.get('test_dataloader'):
        raise UserError(f"Config '{args.config}' must have a model and a test_dataloader, whose pipeline reads images.")
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    files = find_images(cfg, args.images, args.num_images)
    model = build_model(cfg)
    load_weights(model, args.checkpoint)
    model.to(args.device)
    reducers = reducers_of(model, reductions)
    inputs = backbone_inputs(cfg, model, files)
    bar = ProgressBar(args.repeats + 1, file=sys.stderr)
    results = analyze_layers(model.backbone, inputs, reducers, args.repeats, lambda *_: bar.update())
    print(file=sys.stderr)
    print_table(results)
    used = machine(args.device)
    print(
        f'Mean over layers and {len(files)} images; layers ms: their sum. Times: median of {args.repeats} runs, '
        f'mean over images.\nMachine: {", ".join(f"{key} {value}" for key, value in used.items())}'
    )
    args.out.mkdir(parents=True, exist_ok=True)
    report = dict(
        command=shlex.join(sys.argv),
        machine=used,
        settings={k: str(v) for k, v in vars(args).items()},
        reductions=reductions or cfg.model.backbone.get('token_reduction'),
        images=[str(path) for path in files],
        results=without_nan(results),
    )
    write_text(args.out / 'layers.json', json.dumps(report, indent=1))
    draw_layers(results, args.out)
    if args.maps:
        draw_maps(model, reducers, files, inputs, args.out / 'maps')
    print(f'Figures and numbers are in {args.out}')


if __name__ == '__main__':
    main()
