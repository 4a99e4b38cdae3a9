"""report.html and eval.html: whole, alone, and without markup from outside."""
import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from conftest import FINETUNE, finetune, pretrain, two_processes
from PIL import Image

import models_mae
from util import datasets, output_dir, precision, report, report_page, runtime, thumbnails
from util.arguments import parse_finetune, parse_linprobe, parse_pretrain
from util.device import Cpu
from util.distributed import World
from util.errors import Stopped
from util.gallery import IMAGES, MOMENTS, NoGallery, Reconstructions, moments
from util.logbook import SilentLogbook
from util.transforms import Normalize, evaluation_transform
from util.weight_average import WeightAverage

VOID = {'meta', 'img', 'br', 'path', 'circle', 'polyline'}
HOSTILE = '"><script>alert(1)</script><img src=http://x onerror=alert(1)>&amp;\'\n\x1b\udcff'


class Page(HTMLParser):
    """The elements and text of a page, which must be well-formed and want nothing from elsewhere."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text, self.images = [], [], '', []
        self.feed(html)
        assert not self.open, self.open
        self.images = [attrs for tag, attrs in self.tags if tag == 'img']
        assert all(attrs['alt'] and attrs['src'].startswith('data:image/jpeg;base64,') for attrs in self.images)

    def handle_starttag(self, tag, attrs):
        assert tag not in ('link', 'iframe', 'object', 'embed', 'base', 'form', 'a')
        self.tags.append((tag, dict(attrs)))
        assert not {'href', 'srcset', 'action'} & set(dict(attrs)) and not [a for a, _ in attrs if a.startswith('on')]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag):
        return [name for name, _ in self.tags].count(tag)


def read(path):
    return Page(path.read_text(encoding='utf-8'))


def place():
    return runtime.Runtime(Cpu(), World())


def plain():
    return precision.choose(Cpu(), False, 'none', 'auto', 'dynamic')


class Records(SilentLogbook):
    """A logbook of a few epochs."""

    def __init__(self, count=3):
        self.records = [json.dumps({'train_loss': 2. / (i + 1), 'train_lr': 1e-4, 'FPS': 100., 'data_wait': .01,
                                    'epoch': i, 'device': 'CPU'}) for i in range(count)]


def written(folder, *flags, logbook=None, exhibit=None, parse=parse_pretrain):
    """A Report of three epochs to `folder`."""
    args = parse(['--data_path', str(folder), '--output_dir', str(folder), '--epochs', '3', '--num_workers', '0',
                  *flags])
    return report.Report(args, place(), plain(), 32, logbook or Records(), exhibit or NoGallery())


def test_a_run_of_one_epoch_has_its_curves_pictures_flags_and_command(pretrained, images):
    page = read(pretrained / 'report.html')
    assert page.count('svg') == 4 and page.count('polyline') == 0 and len(page.images) == 3 * IMAGES
    for words in ('finished', '1 epoch', 'mae_vit_nano_patch16', '--patch_size', 'flags at their defaults',
                  'torchvision', 'masked', 'after epoch 0', 'original',
                  'python main_pretrain.py --model mae_vit_nano_patch16'):
        assert words in page.text.replace(' \\\n   ', ''), words
    state = torch.load(str(pretrained / 'checkpoint-0.pth'))
    assert [shot['epoch'] for shot in state['reconstructions']] == [0]


def test_only_the_page_s_own_script_may_run(pretrained):
    text = (pretrained / 'report.html').read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-" in text
    assert text.count('<script') == 1 and not re.search(r'https?:|url\(|@import|src="(?!data:)', text)


def test_what_users_name_is_text_and_no_markup(tmp_path):
    folder = tmp_path / ('x' + HOSTILE.replace('/', '|'))
    folder.mkdir()
    exhibit = NoGallery()
    picture = thumbnails.jpeg(Image.new('RGB', (8, 8)))
    exhibit.sections = lambda: [('Worst', report_page.pairs([(HOSTILE, HOSTILE, 1, 2, [picture])])),
                                ('All', report_page.confusion_matrix([HOSTILE, 'b'], [[1, 2], [0, 0]])),
                                ('Hardest', report_page.hardest_classes([(HOSTILE, 1, 2)])),
                                ('Rows', report_page.strips([(HOSTILE, [picture, HOSTILE])], HOSTILE))]
    logbook = Records()
    logbook.records[-1] = json.dumps({**json.loads(logbook.records[-1]), HOSTILE: 1., HOSTILE + 'acc': 2.})
    written(folder, '--aa', HOSTILE, logbook=logbook, exhibit=exhibit, parse=parse_finetune).close(Stopped(HOSTILE))
    plain = Page((folder / 'report.html').read_text(encoding='utf-8').replace(HOSTILE, ''))
    assert plain.count('script') == 1 and plain.text.count('alert(1)') > 6
    assert len(plain.images) == 3


def test_a_report_is_written_on_the_way_as_often_as_asked_and_at_the_end(tmp_path):
    found = []
    running = written(tmp_path, '--report_every', '2')
    for epoch in range(3):
        running.epoch(epoch)
        found.append((tmp_path / 'report.html').exists())
    assert found == [False, True, True] and 'epoch 2 of 3 is done' in read(tmp_path / 'report.html').text
    running.finish({'loss': .5, 'images_per_sec': 10., 'duration_sec': 3.})
    running.close()
    assert 'all 3 epochs' in read(tmp_path / 'report.html').text


def test_without_report_every_nothing_is_written_on_the_way(tmp_path):
    running = written(tmp_path)
    for epoch in range(3):
        running.epoch(epoch)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('error, words', [(Stopped('stopped by SIGTERM in epoch 1'), 'stopped by SIGTERM'),
                                          (ValueError('too many bad steps'), 'too many bad steps')])
def test_a_run_that_ends_early_says_why(tmp_path, error, words):
    written(tmp_path).close(error)
    assert words in read(tmp_path / 'report.html').text


def test_a_run_that_was_stopped_before_its_first_epoch_has_a_report_too(tmp_path):
    written(tmp_path, logbook=Records(0)).close(Stopped('stopped by SIGTERM'))
    assert read(tmp_path / 'report.html').count('svg') == 0


def test_a_report_that_cannot_be_written_is_one_line_and_no_end(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(report.logger, 'propagate', True)
    (tmp_path / 'report.html').mkdir()
    running = written(tmp_path, '--report_every', '1')
    for epoch in range(3):
        running.epoch(epoch)
    running.close(Stopped(''))
    assert len(caplog.messages) == 3 and all('not written (' in line and '\n' not in line for line in caplog.messages)


def test_lines_of_the_log_that_are_not_ours_end_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(report.logger, 'propagate', True)
    logbook = Records()
    logbook.records[1] = '{"epoch": 1}'
    written(tmp_path, logbook=logbook).close(Stopped('x'))
    assert read(tmp_path / 'report.html').count('svg') == 4 and not caplog.messages
    logbook.records[1] = '{"epoch": 1, "data_wait": "x"}'
    written(tmp_path, logbook=logbook).close(Stopped('x'))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize('parse, name', [
    (parse_pretrain, 'Pre-training'), (parse_finetune, 'Fine-tuning'), (parse_linprobe, 'Linear probing')])
def test_a_report_is_called_what_the_run_was(tmp_path, parse, name):
    written(tmp_path, parse=parse).close(Stopped('x'))
    assert '<h1>' + name + ' · ' in (tmp_path / 'report.html').read_text(encoding='utf-8')


def test_the_table_of_epochs_has_what_only_some_epochs_have(tmp_path):
    logbook = Records()
    logbook.records[1] = json.dumps({**json.loads(logbook.records[1]), 'knn_acc1': 12.5})
    written(tmp_path, logbook=logbook).close(Stopped('x'))
    assert 'knn_acc1' in read(tmp_path / 'report.html').text


def test_curves_are_named_in_words_also_those_beside_an_average(tmp_path):
    logbook = Records()
    logbook.records = [json.dumps({**json.loads(line), 'test_raw_acc1': 1., 'test_raw_acc5': 2., 'test_raw_loss': 3.})
                       for line in logbook.records]
    written(tmp_path, logbook=logbook).close(Stopped('x'))
    keys = re.findall('<i class="s.">', (tmp_path / 'report.html').read_text(encoding='utf-8'))
    page = read(tmp_path / 'report.html').text.split('Values of each epoch')[0]
    assert len(keys) == 7 and 'Acc@5, not averaged' in page and 'test_raw' not in page


def test_other_processes_write_nothing(tmp_path):
    args = parse_pretrain(['--data_path', str(tmp_path), '--output_dir', str(tmp_path)])
    other = runtime.Runtime(Cpu(), World())
    other.world = World(1, 2)
    silent = report.of_training(args, other, plain(), 32, Records(), NoGallery())
    silent.epoch(0)
    silent.close()
    report.of_evaluation(args, other, plain(), {})
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('epochs', [1, 2, 3, 50, 400, 1600])
def test_reconstructions_are_few_and_include_the_first_and_the_last(epochs):
    found = moments(epochs)
    assert (found[0], found[-1]) == (0, epochs - 1) and len(found) <= MOMENTS and len(found) == len(set(found))


def gallery(images, epochs=400, earlier=None, start=0, norm_pix_loss=False, mask_ratio=.75, **size):
    torch.manual_seed(0)
    options = {'img_size': 32, 'patch_size': 8, **size}
    model = models_mae.mae_vit_nano_patch16(norm_pix_loss=norm_pix_loss, **options).eval()
    dataset = datasets.pretraining_set(str(images))
    return Reconstructions(model, dataset, evaluation_transform(32), Normalize(), mask_ratio, plain(),
                           torch.device('cpu'), epochs, earlier, start)


def test_pictures_stay_few_for_many_epochs_and_reports(images):
    shown = gallery(images)
    for epoch in range(0, 400, 7):
        shown.after(epoch, True, SilentLogbook())
    shown.after(399, True, SilentLogbook())
    assert len(shown.snapshots) <= MOMENTS + 1 and shown.snapshots[-1]['epoch'] == 399
    assert len(json.dumps(shown.snapshots)) < 400000


def test_a_resumed_run_keeps_the_pictures_from_before_it(images):
    first = gallery(images, 3)
    for epoch in range(3):
        first.after(epoch, False, SilentLogbook())
    resumed = gallery(images, 3, list(first.snapshots), start=2)
    resumed.after(2, False, SilentLogbook())
    assert [shot['epoch'] for shot in resumed.snapshots] == [0, 1, 2]
    assert resumed.snapshots[:2] == first.snapshots[:2]


def test_a_resumed_run_that_ends_before_its_first_picture_shows_those_from_before_it(images):
    first = gallery(images)
    for epoch in range(2):
        first.after(epoch, True, SilentLogbook())
    assert gallery(images, earlier=list(first.snapshots), start=2).sections() == first.sections() != []
    assert gallery(images, earlier=list(first.snapshots), start=2, mask_ratio=.5).sections() == []


def test_pictures_of_other_images_or_masks_are_dropped(images):
    first = gallery(images)
    first.after(0, True, SilentLogbook())
    other = gallery(images, earlier=list(first.snapshots), start=1, mask_ratio=.5)
    other.after(1, True, SilentLogbook())
    assert [shot['epoch'] for shot in other.snapshots] == [1]


def test_pictures_leave_the_random_generators_alone(images):
    shown = gallery(images)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    shown.after(0, True, SilentLogbook())
    assert torch.equal(torch.rand(3), expected)


def test_pictures_are_of_the_average_where_there_is_one(images):
    torch.manual_seed(0)
    model = models_mae.mae_vit_nano_patch16(img_size=32, patch_size=8).eval()
    average = WeightAverage(.9, dict(model.named_parameters()))
    dataset = datasets.pretraining_set(str(images))

    def pictures(*within):
        shown = Reconstructions(model, dataset, evaluation_transform(32), Normalize(), .75, plain(),
                                torch.device('cpu'), 1, None, 0, *within)
        shown.after(0, True, SilentLogbook())
        return shown.snapshots[0]['jpegs']

    before = pictures()
    torch.nn.init.zeros_(model.decoder_pred.weight)
    assert pictures() != before == pictures(lambda: average.within(model))


def test_the_note_on_normalised_patches_is_there_where_they_are(images):
    for on in (False, True):
        shown = gallery(images, norm_pix_loss=on)
        shown.after(0, True, SilentLogbook())
        assert ('--norm_pix_loss' in shown.sections()[0][1]) == on


@pytest.mark.slow
def test_a_finetuning_shows_confused_classes_and_an_evaluation_leaves_its_report_alone(images, tmp_path):
    run = two_processes('main_finetune.py', *FINETUNE, '--data_path', images, '--output_dir', tmp_path, '--epochs', 1,
                        '--batch_size', 4, '--dist_eval')
    assert run.status == 0, run.output
    trained = read(tmp_path / 'report.html')
    assert trained.count('svg') == 5 and 'util/launch.py --nproc 2 main_finetune.py' in trained.text
    assert 'taken for' in trained.text and trained.images
    before = (tmp_path / 'report.html').read_bytes()
    run = finetune('--data_path', images, '--output_dir', tmp_path, '--eval', '--resume', tmp_path / 'checkpoint-0.pth')
    assert run.status == 0 and (tmp_path / 'report.html').read_bytes() == before, run.output
    matrices = [page.text.split('All classes')[1].split('Final')[0]
                for page in (trained, read(tmp_path / 'eval.html'))]
    assert matrices[0] == matrices[1]


def test_an_older_report_of_an_evaluation_is_set_aside(tmp_path):
    args = parse_finetune(['--data_path', str(tmp_path), '--output_dir', str(tmp_path), '--num_workers', '0'])
    result = {'task': 'Evaluation', 'acc1': 50., 'acc5': 90., 'loss': 1., 'images': 19, 'images_per_sec': 10.,
              'duration_sec': 2., 'checkpoint': 'x.pth'}
    for accuracy in (50., 75.):
        report.of_evaluation(args, place(), plain(), {**result, 'acc1': accuracy})
    assert len(list(tmp_path.glob('eval*.html'))) == 2 and '75.00%' in read(tmp_path / 'eval.html').text


def test_the_report_of_a_course_that_was_left_is_set_aside_with_its_log(tmp_path):
    for name, text in (('log.txt', '{"epoch": 0}\n{"epoch": 1}\n'), ('report.html', 'x')):
        (tmp_path / name).write_text(text)
    assert output_dir.set_log_aside(str(tmp_path), ['{"epoch": 0}', '{"epoch": 1}', '{"epoch": 2}']) == []
    assert len(output_dir.set_log_aside(str(tmp_path), ['{"epoch": 0}'])) == 2
    assert not (tmp_path / 'report.html').exists() and len(list(tmp_path.glob('report.*.html'))) == 1


@pytest.mark.slow
def test_a_resumed_pretraining_goes_on_with_its_report(images, pretrained, tmp_path):
    shutil.copytree(str(pretrained), str(tmp_path / 'o'))
    run = pretrain('--data_path', images, '--output_dir', tmp_path / 'o', '--epochs', 2, '--resume', 'auto')
    assert run.status == 0, run.output
    text = read(tmp_path / 'o' / 'report.html').text
    assert 'after epoch 0' in text and 'after epoch 1' in text and 'all 2 epochs' in text


def test_tensorboard_has_pictures_and_flags_in_the_run_itself(pretrained):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    assert [path for path in pretrained.iterdir() if path.is_dir()] == []
    events = accumulator.EventAccumulator(str(pretrained), size_guidance={'images': 0})
    events.Reload()
    assert events.Tags()['images'] == ['reconstructions'] and 'train_loss' in events.Tags()['scalars']
    assert [image.step for image in events.Images('reconstructions')] == [1000]
    found = events.PluginTagToContent('hparams')
    assert {'_hparams_/experiment', '_hparams_/session_start_info'} == set(found)
    assert b'mae_vit_nano_patch16' in found['_hparams_/session_start_info']
