"""What a run has written."""

import json


def losses(work_dir):
    """{iteration: loss} as logged in ``work_dir``; a later run's replace an earlier one's."""
    found = {}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            record = json.loads(line)
            if 'loss' in record:
                found[record['step']] = record['loss']
    return found


def scores(work_dir):
    """The metrics that test.py has written into ``work_dir``."""
    (log,) = work_dir.glob('*/*.json')
    return json.loads(log.read_text())
