import os
import sqlite3
import zlib

import numpy as np
import pytest
import torch

from mmtr.analysis.journal import Journal
from mmtr.errors import UserError


def test_records_outlive_the_process_that_kept_them(tmp_path):
    # What mmdet's metrics keep: arrays and plain values, in tuples.
    first = dict(
        size=2, results=[({'img_id': 3, 'bboxes': np.eye(4, dtype=np.float32)}, [torch.arange(3), None, b'rle'])]
    )
    with Journal(tmp_path / 'kept', dict(config='a')) as journal:
        journal.append(first)
        journal.append(dict(size=1))
        assert journal.note('costs', lambda: [1, 2]) == [1, 2]
    with Journal(tmp_path / 'kept', dict(config='a')) as journal:
        one, two = journal
        assert len(journal) == 2 and two == dict(size=1) and one['size'] == 2
        assert journal.note('costs', lambda: 1 / 0) == [1, 2]
        journal.remove()
    (gt, kept), (gt_before, before) = one['results'][0], first['results'][0]
    assert gt['img_id'] == 3 and np.array_equal(gt['bboxes'], gt_before['bboxes'])
    assert torch.equal(kept[0], before[0]) and kept[1:] == before[1:]
    assert not os.listdir(tmp_path)


def test_two_processes_do_not_share_a_file(tmp_path):
    with Journal(tmp_path / 'kept', {}) as journal:
        journal.append({})
        with pytest.raises(UserError, match='another process uses it'):
            Journal(tmp_path / 'kept', {})


def test_what_is_no_plain_value_stops_the_first_step():
    with pytest.raises(UserError, match='tensors, arrays and plain values alone'):
        Journal().append(dict(results=[UserError('an object')]))


def test_a_file_that_carries_code_does_not_run_it(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'ran'),)

    torch.save(Hostile(), tmp_path / 'hostile')
    with Journal(tmp_path / 'kept', {}):
        pass
    with sqlite3.connect(tmp_path / 'kept') as file:
        file.execute('INSERT INTO steps VALUES (0, ?)', (zlib.compress((tmp_path / 'hostile').read_bytes()),))
    with Journal(tmp_path / 'kept', {}) as journal, pytest.raises(UserError, match='plain values alone'):
        list(journal)
    assert not (tmp_path / 'ran').exists()
