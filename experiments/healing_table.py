"""Print the accuracy of the trainings of experiments/healing.sh: python experiments/healing_table.py work_dirs/healing

The folders of a run NAME are NAME_0, NAME_1, NAME_2, one for each seed; the mIoU and the IoU of each class are read
from the last validation in their logs.
"""

import argparse
import re
import statistics
import sys
from pathlib import Path


def last_validation(folder: Path) -> dict[str, float]:
    """Read the mIoU and the IoU of each class from the newest log in a folder; {} if it has none."""
    text = max(folder.glob('*/*.log'), key=lambda path: path.stat().st_mtime).read_text()
    if 'per class results' not in text:
        print(f'{folder.name} has not been validated yet', file=sys.stderr)
        return {}
    table = text[text.rindex('per class results') :]
    found = {name: float(iou) for name, iou in re.findall(r'^\|\s+(\w+)\s+\|\s+([\d.]+|nan)\s+\|', table, re.M)}
    return {'mIoU': float(re.search(r'mIoU: ([\d.]+)', table).group(1)), **found}


def main() -> None:
    """Print a table for each data set: the first word of the names of runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    folder = parser.parse_args().folder
    runs: dict[str, dict[str, list]] = {}
    for path in sorted(folder.iterdir()):
        name, _, _ = path.name.rpartition('_')
        data, _, setting = name.partition('_')
        if list(path.glob('*/*.log')) and (found := last_validation(path)):
            runs.setdefault(data, {}).setdefault(setting, []).append(found)
    for data, settings in runs.items():
        print(f'\n| {data} | {" | ".join(settings)} |\n|---|{"---:|" * len(settings)}')
        for row in next(iter(settings.values()))[0]:
            cells = []
            for seeds in settings.values():
                values = [seed[row] for seed in seeds]
                spread = f' ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)' if row == 'mIoU' else ''
                cells.append(f'{statistics.mean(values):.2f}{spread}')
            print(f'| {row} | {" | ".join(cells)} |')


main()
