"""What a run keeps of image files that it cannot read: the count, the lines, bad_images.txt, and the end."""
import os

import pytest
import torch

from util import bad_images, output_dir
from util.bad_images import BadImages, default_limit, escaped, unescaped
from util.distributed import World
from util.errors import UserError
from util.log import logger

NAMES = ['plain.jpg', 'with space.jpg', 'tab\there.jpg', 'line\nend.jpg', 'back\\slash\\n.jpg', 'Bär 猫.jpg',
         os.fsdecode(b'raw\xff\x80.jpg'), 'line\u2028separator\x85.jpg', '\\', 'carriage\r.jpg']


def pairs(*numbers):
    return [('/data/{}.jpg'.format(n), 'an empty file') for n in numbers]


def lines(folder):
    return (folder / 'bad_images.txt').read_text(encoding='utf-8').split('\n')[:-1]


@pytest.fixture
def said(monkeypatch):
    """The warnings, as a list."""
    words = []
    monkeypatch.setattr(logger, 'warning', lambda text, *args: words.append(text % args))
    return words


@pytest.mark.parametrize('name', NAMES)
def test_a_path_is_one_line_and_can_be_recovered(name):
    text = escaped(name)
    assert len((text + '|').splitlines()) == 1 and '\t' not in text and text.encode('utf-8')
    assert unescaped(text) == name and os.fsencode(unescaped(text)) == os.fsencode(name)


def test_the_default_limit_is_1_in_1000_and_at_least_10():
    assert [default_limit(n) for n in (0, 9999, 11000, 1281167)] == [10, 10, 11, 1281]


def test_a_file_is_taken_once_however_often_it_is_met():
    bad = BadImages(None, 5)
    bad.met(pairs(1, 2))
    bad.met(pairs(2, 3))
    assert bad.take() == pairs(1, 2, 3)
    bad.met(pairs(1, 4))
    assert bad.take() == pairs(4) and bad.take() == []


def test_a_file_that_several_processes_met_counts_once(tmp_path):
    bad = BadImages(str(tmp_path), 5)
    bad.record(pairs(1, 2, 1))
    bad.record(pairs(2, 3))
    assert len(bad._recorded) == 3
    assert lines(tmp_path) == ['/data/{}.jpg\tan empty file'.format(n) for n in (1, 2, 3)]


def test_a_run_without_unreadable_images_leaves_no_list(tmp_path):
    bad = BadImages(str(tmp_path), 5)
    bad.share(World(), torch.device('cpu'))
    assert not list(tmp_path.iterdir())


def test_any_file_name_stays_one_line_of_the_list(tmp_path):
    BadImages(str(tmp_path), 99).record([(name, 'why') for name in NAMES])
    content = (tmp_path / 'bad_images.txt').read_bytes().decode()
    assert len(content.splitlines()) == len(NAMES)
    assert [unescaped(line.split('\t')[0]) for line in content.splitlines()] == NAMES


def test_a_resumed_run_lists_and_tells_no_file_twice(tmp_path, said):
    BadImages(str(tmp_path), 99).record([(name, 'why') for name in NAMES])
    assert len(said) == len(NAMES)
    resumed = BadImages(str(tmp_path), 99)
    resumed.record([(name, 'why') for name in NAMES] + pairs(1))
    assert len(lines(tmp_path)) == len(NAMES) + 1 and len(said) == len(NAMES) + 1


def test_a_repaired_file_of_an_earlier_run_does_not_count(tmp_path):
    BadImages(str(tmp_path), 99).record(pairs(*range(10)))
    resumed = BadImages(str(tmp_path), 10)
    resumed.record(pairs(10, 11))
    assert len(resumed._recorded) == 2


def test_more_than_the_limit_ends_the_run_with_all_of_them_listed(tmp_path):
    bad = BadImages(str(tmp_path), 2)
    bad.record(pairs(1, 2))
    with pytest.raises(UserError) as caught:
        bad.record(pairs(2, 3, 4))
    assert str(caught.value) == ('4 image files cannot be read, more than --max_bad_images 2; see bad_images.txt; '
                                 'the last is /data/4.jpg (an empty file)')
    assert len(lines(tmp_path)) == 4


def test_all_processes_end_at_the_same_record_whoever_keeps_the_list(tmp_path):
    BadImages(str(tmp_path), 99).record(pairs(1, 2, 3))
    for bad in (BadImages(str(tmp_path), 2), BadImages(None, 2)):
        bad.record(pairs(3, 4))
        with pytest.raises(UserError, match='3 image files'):
            bad.record(pairs(5))


def test_a_limit_of_0_takes_no_unreadable_file(tmp_path):
    with pytest.raises(UserError, match='^1 image file cannot be read, more than --max_bad_images 0'):
        BadImages(str(tmp_path), 0).record(pairs(1))


def test_only_the_first_ten_are_told_one_by_one(tmp_path, said):
    bad = BadImages(str(tmp_path), 99)
    bad.record(pairs(*range(7)))
    bad.record(pairs(*range(7, 20)))
    bad.record(pairs(*range(20, 30)))
    assert said == ['/data/{}.jpg: cannot be read (an empty file)'.format(n) for n in range(10)] + [
        'further unreadable images are only listed, in {}'.format(tmp_path / 'bad_images.txt')]
    assert len(lines(tmp_path)) == 30


def test_only_the_main_process_speaks(said):
    BadImages(None, 99).record(pairs(1))
    assert said == []


def test_a_disk_that_refuses_the_list_is_told_once_and_the_files_are_listed_when_it_works_again(tmp_path, said):
    bad = BadImages(str(tmp_path / 'gone'), 99)
    bad.record(pairs(1))
    bad.record(pairs(2))
    assert [words for words in said if 'cannot be written' in words] == [
        '{}: cannot be written (No such file or directory); going on without it'.format(
            tmp_path / 'gone' / 'bad_images.txt')]
    (tmp_path / 'gone').mkdir()
    bad.record(pairs(3))
    assert len(lines(tmp_path / 'gone')) == 3


def test_a_full_disk_does_not_end_training(tmp_path, said):
    bad = BadImages(str(tmp_path), 99)
    (tmp_path / 'bad_images.txt').symlink_to('/dev/full')
    bad.record(pairs(1))
    assert len(bad._recorded) == 1 and 'No space left on device' in said[-1]


def test_a_line_that_was_cut_off_stays_by_itself(tmp_path):
    BadImages(str(tmp_path), 99).record(pairs(1))
    with open(str(tmp_path / 'bad_images.txt'), 'a') as file:
        file.write('/data/2.j')
    BadImages(str(tmp_path), 99).record(pairs(1, 2))
    assert lines(tmp_path) == ['/data/1.jpg\tan empty file', '/data/2.j', '/data/2.jpg\tan empty file']


def test_a_list_full_of_rubbish_does_no_harm(tmp_path):
    (tmp_path / 'bad_images.txt').write_bytes(bytes(range(256)) * 4 + b'\\x\tz\n')
    BadImages(str(tmp_path), 99).record(pairs(1))
    assert lines_of_bytes(tmp_path)[-1] == b'/data/1.jpg\tan empty file'


def lines_of_bytes(folder):
    return (folder / 'bad_images.txt').read_bytes().split(b'\n')[:-1]


def test_a_loader_without_a_list_tells_each_file_once(said):
    unlisted = bad_images.Unlisted()
    unlisted.met(pairs(1, 2))
    unlisted.met(pairs(2, *range(3, 30)))
    assert len(said) == 11 and said[1] == '/data/2.jpg: cannot be read (an empty file)'


def test_the_list_of_an_earlier_run_is_set_aside_unless_the_run_goes_on(tmp_path):
    (tmp_path / 'o').mkdir()
    BadImages(str(tmp_path / 'o'), 99).record(pairs(1))
    assert output_dir.prepare(str(tmp_path / 'o'), 'auto') is None and len(lines(tmp_path / 'o')) == 1
    aside = output_dir.prepare(str(tmp_path / 'o'))
    assert os.listdir(aside) == ['bad_images.txt'] and not os.listdir(str(tmp_path / 'o'))
