"""Unreadable images of a run: count, log lines, bad_images.txt and limit."""
import os

import pytest
import torch

from util.data.unreadable import UnreadableTracker, escaped
from util.distributed.world import World
from util.errors import UserError

NAMES = ['plain.jpg', 'with space.jpg', 'tab\there.jpg', 'line\nend.jpg', 'back\\slash\\n.jpg', 'Bär 猫.jpg',
         os.fsdecode(b'raw\xff\x80.jpg'), 'line\u2028separator\x85.jpg', '\\', 'carriage\r.jpg']


def pairs(*numbers):
    return [('/data/{}.jpg'.format(n), 'an empty file') for n in numbers]


def record(bad, failures):
    bad.add(failures)
    bad.sync(World(), torch.device('cpu'))


def lines(folder):
    return (folder / 'bad_images.txt').read_bytes().decode().splitlines()


def test_the_default_limit_is_1_in_1000_and_at_least_10():
    limits = [UnreadableTracker.of_run(None, None, range(n), World()).limit for n in (0, 9999, 11000, 1281167)]
    assert limits == [10, 10, 11, 1281]
    assert UnreadableTracker.of_run(None, 3, range(9), World()).limit == 3


def test_each_file_counts_once_over_all_passes_and_processes(tmp_path):
    bad = UnreadableTracker(str(tmp_path), 5)
    bad.sync(World(), torch.device('cpu'))
    assert not list(tmp_path.iterdir())         # no file without unreadable images
    bad.add(pairs(1, 2, 1))
    bad.add(pairs(2, 3))
    assert len(bad.pending) == 3
    bad.sync(World(), torch.device('cpu'))
    assert len(bad.pending) == 0
    bad.add(pairs(1, 4))
    assert len(bad.pending) == 1
    record(bad, pairs(4, 4, 1))
    assert lines(tmp_path) == ['/data/{}.jpg\tan empty file'.format(n) for n in (1, 2, 3, 4)]


def test_resumed_run_lists_and_logs_each_file_once(tmp_path, caplog):
    record(UnreadableTracker(str(tmp_path), 99), [(name, 'why') for name in NAMES])
    paths = [line.split('\t')[0] for line in lines(tmp_path)]
    assert paths == [escaped(name) for name in NAMES] and len(caplog.records) == len(NAMES)
    assert [path.encode('ascii', 'backslashreplace').decode('unicode_escape') for path in paths] == NAMES
    resumed = UnreadableTracker(str(tmp_path), 1)       # earlier files do not count: they may have been repaired
    record(resumed, pairs(1))
    assert lines(tmp_path)[-1] == '/data/1.jpg\tan empty file'
    record(UnreadableTracker(str(tmp_path), 99), [(name, 'why') for name in NAMES])
    assert len(caplog.records) == len(NAMES) + 1


def test_exceeding_the_limit_fails_on_every_process_after_listing_all(tmp_path, caplog):
    for bad in (UnreadableTracker(str(tmp_path), 2), UnreadableTracker(None, 2)):
        record(bad, pairs(1, 2))
        with pytest.raises(UserError, match='^4 image files .*--max_bad_images 2.*/data/4.jpg'):
            record(bad, pairs(2, 3, 4))
    assert len(lines(tmp_path)) == 4 == len(caplog.records)         # the main process logs


@pytest.mark.parametrize('make', [lambda path: None,
                                  lambda path: (path.mkdir(), os.mkfifo(str(path / 'bad_images.txt')))])
def test_failed_write_is_logged(tmp_path, caplog, make):
    make(tmp_path / 'x')
    bad = UnreadableTracker(str(tmp_path / 'x'), 99)
    record(bad, pairs(*range(12)))
    record(bad, pairs(20))
    assert 'bad_images.txt: cannot be written' in caplog.text
    assert '/data/9.jpg' in caplog.text and '/data/10.jpg' not in caplog.text
