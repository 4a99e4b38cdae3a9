"""What a run keeps of image files that it cannot read: the count, the log lines, bad_images.txt, and the end."""
import os

import pytest
import torch

from util import output_dir
from util.bad_images import BadImages, default_limit, escaped
from util.distributed import World
from util.errors import UserError
from util.log import logger

NAMES = ['plain.jpg', 'with space.jpg', 'tab\there.jpg', 'line\nend.jpg', 'back\\slash\\n.jpg', 'Bär 猫.jpg',
         os.fsdecode(b'raw\xff\x80.jpg'), 'line\u2028separator\x85.jpg', '\\', 'carriage\r.jpg']


def pairs(*numbers):
    return [('/data/{}.jpg'.format(n), 'an empty file') for n in numbers]


def lines(folder):
    return (folder / 'bad_images.txt').read_bytes().decode().splitlines()


@pytest.fixture
def warned(monkeypatch):
    """The warnings, as a list."""
    words = []
    monkeypatch.setattr(logger, 'warning', lambda text, *args: words.append(text % args))
    return words


def test_any_path_is_one_line_of_the_list_and_can_be_recovered(tmp_path):
    BadImages(str(tmp_path), 99).record([(name, 'why') for name in NAMES])
    paths = [line.split('\t')[0] for line in lines(tmp_path)]
    assert paths == [escaped(name) for name in NAMES]
    assert [path.encode('ascii', 'backslashreplace').decode('unicode_escape') for path in paths] == NAMES


def test_the_default_limit_is_1_in_1000_and_at_least_10():
    assert [default_limit(n) for n in (0, 9999, 11000, 1281167)] == [10, 10, 11, 1281]


def test_a_file_is_taken_once_however_often_it_is_met():
    bad = BadImages(None, 5)
    bad.met(pairs(1, 2, 1))
    bad.met(pairs(2, 3))
    assert bad.pending == 3 and bad.take() == pairs(1, 2, 3)
    bad.met(pairs(1, 4))
    assert bad.take() == pairs(4) and bad.take() == []


def test_a_file_that_several_processes_met_counts_once_and_none_leaves_no_list(tmp_path):
    bad = BadImages(str(tmp_path), 3)
    bad.share(World(), torch.device('cpu'))
    assert not list(tmp_path.iterdir())
    bad.record(pairs(1, 2, 1))
    bad.record(pairs(2, 3))
    assert lines(tmp_path) == ['/data/{}.jpg\tan empty file'.format(n) for n in (1, 2, 3)]


def test_a_resumed_run_lists_and_logs_no_file_twice(tmp_path, warned):
    BadImages(str(tmp_path), 99).record([(name, 'why') for name in NAMES])
    assert len(warned) == len(NAMES)
    with open(str(tmp_path / 'bad_images.txt'), 'ab') as file:
        file.write(b'cut off \xff')
    resumed = BadImages(str(tmp_path), 1)           # files of the earlier run do not count: they may be repaired
    resumed.record(pairs(1))
    assert (tmp_path / 'bad_images.txt').read_bytes().endswith(b'cut off \xff\n/data/1.jpg\tan empty file\n')
    BadImages(str(tmp_path), 99).record([(name, 'why') for name in NAMES])
    assert len(warned) == len(NAMES) + 1


def test_more_than_the_limit_ends_every_process_with_all_of_them_listed(tmp_path, warned):
    for bad in (BadImages(str(tmp_path), 2), BadImages(None, 2)):
        bad.record(pairs(1, 2))
        with pytest.raises(UserError, match='^4 image files .*--max_bad_images 2.*/data/4.jpg'):
            bad.record(pairs(2, 3, 4))
    assert len(lines(tmp_path)) == 4 == len(warned)         # the main process logs
    with pytest.raises(UserError):
        BadImages(None, 0).record(pairs(1))


def test_only_the_first_ten_are_logged_one_by_one(tmp_path, warned):
    bad = BadImages(str(tmp_path), 99)
    bad.record(pairs(*range(7)))
    bad.record(pairs(*range(7, 30)))
    assert len(warned) == 11 and all(path in words for (path, _), words in zip(pairs(*range(10)), warned))
    assert len(lines(tmp_path)) == 30


def test_a_disk_that_refuses_the_list_is_logged_once_and_the_files_are_listed_when_it_works_again(tmp_path, warned):
    bad = BadImages(str(tmp_path / 'gone'), 99)
    bad.record(pairs(1))
    bad.record(pairs(2))
    assert len([words for words in warned if 'No such file' in words]) == 1
    (tmp_path / 'gone').mkdir()
    bad.record(pairs(3))
    assert len(lines(tmp_path / 'gone')) == 3


def test_the_list_of_an_earlier_run_is_set_aside_unless_the_run_resumes(tmp_path):
    (tmp_path / 'o').mkdir()
    BadImages(str(tmp_path / 'o'), 99).record(pairs(1))
    assert output_dir.prepare(str(tmp_path / 'o'), 'auto') is None and len(lines(tmp_path / 'o')) == 1
    aside = output_dir.prepare(str(tmp_path / 'o'))
    assert os.listdir(aside) == ['bad_images.txt'] and not os.listdir(str(tmp_path / 'o'))
