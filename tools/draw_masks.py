"""Draw the objects in an annotation file in COCO's layout as one PNG mask an image: 255 in any object, 0 elsewhere.

Example: tools/draw_masks.py data/dsb2018_nuclei/annotations/instances_val.json data/dsb2018_nuclei_masks/val
"""

import argparse
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO
from tqdm import tqdm

from mmtr.errors import UserError, command


def read_annotations(path: str) -> COCO:
    """Read an annotation file.

    Raises:
        UserError: The file cannot be read, is not in COCO's layout, or has annotations without a segmentation.
    """
    try:
        with redirect_stdout(io.StringIO()):
            coco = COCO(path)
        for image in coco.dataset['images']:
            image['file_name'], image['height'], image['width']
    except OSError as error:
        raise UserError(f"The annotation file '{path}' cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, AssertionError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is no annotation file in COCO's layout, with images and annotations.") from error
    bare = [str(annotation['id']) for annotation in coco.anns.values() if not annotation.get('segmentation')]
    if bare:
        raise UserError(
            f"{len(bare)} of {len(coco.anns)} annotations in '{path}' are boxes without a 'segmentation', "
            f'the first has the id {bare[0]}: masks need polygons or RLE.'
        )
    return coco


def draw_mask(coco: COCO, image: dict) -> np.ndarray:
    """Draw the union of the objects of an image, given by its record in the file: (H, W) uint8, 0 or 255."""
    objects = [coco.annToRLE(annotation) for annotation in coco.imgToAnns[image['id']]]
    if not objects:
        return np.zeros((image['height'], image['width']), np.uint8)
    return 255 * masks.decode(masks.merge(objects))


@command
def main(argv: Optional[list[str]] = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('annotations', help=".json file in COCO's layout")
    parser.add_argument('out', metavar='OUT', type=Path, help='folder to write, a PNG for each image')
    args = parser.parse_args(argv)
    coco = read_annotations(args.annotations)
    for image in tqdm(coco.dataset['images'], unit='mask'):
        path = args.out / Path(image['file_name']).with_suffix('.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_mask(coco, image)).save(path)
    print(f"Wrote {len(coco.dataset['images'])} masks to '{args.out}'.")


if __name__ == '__main__':
    main()
