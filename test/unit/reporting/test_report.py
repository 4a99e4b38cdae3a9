"""report.html and eval.html: complete, self-contained, without injected markup."""
import base64
import hashlib
import json
import math
import os
import re
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from conftest import nano_mae

from util.config.train_flags import parse_finetune, parse_linprobe, parse_pretrain
from util.data import datasets
from util.data.transforms import Normalize, evaluation_transform
from util.devices import precision
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import Preempted
from util.reporting import reconstructions, report
from util.reporting.reconstructions import IMAGES, SNAPSHOTS, ReconstructionSnapshots
from util.reporting.run_logger import NullRunLogger
from util.training import session

HOSTILE = '"></script><script>alert(1)</script><!--<img src=http://x onerror=alert(1)>&amp;\'\n\x1b\x7f\u2028\udcff'
SHOWN = HOSTILE[:-5] + '\\n\\x1b\\x7f\\u2028\\udcff'       # in one line
with open(report.TEMPLATE, encoding='utf-8') as file:
    TEMPLATE = file.read()
RENDERED = set(re.findall(r'^  (\w+): ', TEMPLATE.split('const render = {')[1], re.M))       # kinds of content


class Page:
    """A parsed report: its JSON data, by section and kind, and its text."""

    def __init__(self, path):
        self.text = path.read_text(encoding='utf-8')
        raw = re.search(r'<script type="application/json" id="data">(.*)</script>\n', self.text).group(1)
        assert not set(raw) & set('<\n\x1b\x7f')
        self.data = json.loads(raw)
        self.parts = {heading: dict(parts) for heading, parts in self.data['sections']}
        assert {kind for parts in self.parts.values() for kind in parts} <= RENDERED
        self.curves = {chart['title']: {curve['name']: curve['values'] for curve in chart['curves']}
                       for chart in self.parts.get('Curves', {'charts': {'charts': []}})['charts']['charts']}


def records(count=3, **more):
    """A run logger with records of a few epochs; `more` is in the last one."""
    run_logger, found = NullRunLogger(), [{'train_loss': 2. / (i + 1), 'train_lr': 1e-4, 'FPS': 100., 'data_wait': .01,
                                        'epoch': i, 'device': 'CPU'} for i in range(count)]
    run_logger.records = [json.dumps(record) for record in found[:-1] + [{**record, **more} for record in found[-1:]]]
    return run_logger


def report_part_of(*sections):
    """A report part with fixed sections."""
    return SimpleNamespace(report_sections=lambda: sections, on_epoch_end=lambda *args: None)


def make_session(*world):
    return session.Session(Cpu(), World(*world))


def make_report(folder, *flags, run_logger=None, report_part=None, parse=parse_pretrain, world=()):
    """A Report of three epochs to `folder`."""
    args = parse(['--data_path', str(folder), '--output_dir', str(folder), '--epochs', '3', '--num_workers', '0',
                  *flags])
    return report.Report(args, make_session(*world), precision.FullPrecision(), 32, run_logger or records(),
                         report_part or report_part_of())


def page_of(folder, error=None, **options):
    """The Page of a run that was stopped."""
    make_report(folder, **options).close(error or Preempted('stopped by SIGTERM'))
    return Page(folder / 'report.html')


def test_a_one_epoch_report_has_curves_reconstructions_flags_and_command(pretrained):
    page = Page(pretrained / 'report.html')
    assert list(page.parts) == ['Curves', 'Reconstructions', 'Final result', 'Command', 'Configuration', 'Environment']
    assert page.data['state'] == 'finished' and len(page.curves) == 4 and all(
        len(values) == 1 for curves in page.curves.values() for values in curves.values())
    assert [(what, len(jpegs)) for what, jpegs in page.parts['Reconstructions']['strips']] == [
        ('masked', IMAGES), ('after epoch 0', IMAGES), ('original', IMAGES)]
    flags = dict(page.parts['Configuration']['details'][2])
    assert (flags['--patch_size'], flags['--mask_ratio'], flags['--norm_pix_loss']) == (8, .75, False)
    command, = page.parts['Command']['command']
    assert command.startswith('python main_pretrain.py --model mae_vit_nano_patch16 ')
    assert page.data['metrics']


def test_the_security_policy_allows_only_the_inline_style_and_script():
    policy = re.search('Content-Security-Policy" content="([^"]*)"', TEMPLATE).group(1)
    hashes = [base64.b64encode(hashlib.sha256(re.search('<{0}>(.*)</{0}>'.format(tag), TEMPLATE, re.S).group(1)
                                              .encode()).digest()).decode() for tag in ('style', 'script')]
    assert ' '.join(policy.split()) == "default-src 'none'; img-src data:; style-src 'sha256-{}'; " \
                                       "script-src 'sha256-{}'".format(*hashes)
    assert TEMPLATE.count(report.PLACEHOLDER) == 1 and 'innerHTML' not in TEMPLATE


def test_text_from_users_is_data_not_markup(tmp_path):
    folder = tmp_path / ('x' + HOSTILE.replace('/', '|'))
    folder.mkdir()
    report_part = report_part_of((HOSTILE, [('strips', [(HOSTILE, [HOSTILE])]), ('pairs', [[HOSTILE, 1]])]))
    page = page_of(folder, Preempted(HOSTILE), run_logger=records(**{HOSTILE + 'acc': 2.}), report_part=report_part)
    assert page.parts[SHOWN] == {'strips': [[SHOWN, [SHOWN]]], 'pairs': [[SHOWN, 1]]}
    assert page.data['detail'].endswith(': ' + SHOWN) and SHOWN.replace('/', '|') in page.data['subtitle']
    assert page.curves['Accuracy, %'] == {SHOWN + 'acc': [None, None, 2.]}
    assert page.text.count('<script') == 2 and '<img' not in page.text and '<!--<' not in page.text


@pytest.mark.parametrize('every, expected', [('2', [False, True, True]), ('0', 3 * [False])])
def test_a_report_is_written_every_report_every_epochs_and_at_the_end(tmp_path, every, expected):
    running, found, path = make_report(tmp_path, '--report_every', every), [], tmp_path / 'report.html'
    for epoch in range(3):
        running.on_epoch_end(epoch)
        found.append(path.exists())
    assert found == expected and (not any(found) or Page(path).data['state'] == 'running')
    running.result = {'loss': .5, 'images_per_sec': 10., 'duration_sec': 3.}
    running.close()
    assert Page(path).data['state'] == 'finished' and ['loss', .5] in Page(path).parts['Final result']['facts']


def test_an_interrupted_run_reports_the_reason_even_before_its_first_epoch(tmp_path):
    for parse, name, error, state in ((parse_finetune, 'Fine-tuning · ', Preempted('by SIGTERM'), 'stopped'),
                                      (parse_linprobe, 'Linear probing · ', ValueError('bad steps'), 'ended')):
        page = page_of(tmp_path, error, run_logger=records(0), parse=parse)
        assert page.data['title'].startswith(name)
        assert page.data['state'] == state and page.data['detail'].endswith(str(error)) and 'Curves' not in page.parts


def test_a_report_that_cannot_be_written_is_one_line_and_training_continues(tmp_path, caplog):
    (tmp_path / 'report.html').mkdir()
    running = make_report(tmp_path, '--report_every', '1')
    for epoch in range(3):
        running.on_epoch_end(epoch)
    running.close(Preempted(''))
    assert len(caplog.messages) == 3 and all('\n' not in line for line in caplog.messages)


def test_curves_have_readable_names_and_the_table_has_keys_of_single_epochs(tmp_path):
    page = page_of(tmp_path, run_logger=records(knn_acc1=12.5, test_acc5=2., odd_loss=math.nan, test_loss=3.))
    assert page.curves['Accuracy, %'] == {'k-NN': [None, None, 12.5], 'Acc@5': [None, None, 2.]}
    assert page.curves['Loss'] == {'training': [2., 1., 2. / 3], 'validation': [None, None, 3.]}
    table = page.parts['Curves']['details'][2]
    newest = dict(zip(table['head'], table['rows'][0]))
    assert (newest['epoch'], newest['knn_acc1'], newest['odd_loss']) == (2, 12.5, 'nan')
    assert (table['head'][0], len(table['rows'])) == ('epoch', 3)


def test_other_ranks_write_nothing(tmp_path):
    silent = make_report(tmp_path, world=(1, 2))
    silent.on_epoch_end(2)
    silent.close(Preempted('x'))
    args = parse_finetune(['--data_path', str(tmp_path), '--output_dir', str(tmp_path)])
    report.write_evaluation_report(args, make_session(1, 2), None, {}, report_part_of())
    assert os.listdir(str(tmp_path)) == []


def snapshots(images, epochs=400, earlier=None, start=0, norm_pix_loss=False, mask_ratio=.75, eval_weights=nullcontext):
    return ReconstructionSnapshots(
        nano_mae(norm_pix_loss=norm_pix_loss).eval(), datasets.pretraining_set(str(images)),
        evaluation_transform(32), Normalize(), mask_ratio,
        precision.FullPrecision(), torch.device('cpu'), epochs, earlier, start, eval_weights)


def test_snapshots_stay_few_and_include_the_first_and_last_epoch(images):
    entered = []
    shown = snapshots(images, norm_pix_loss=True, eval_weights=lambda: entered.append(True) or nullcontext())
    for epoch in (*range(0, 400, 40), 399):
        shown.on_epoch_end(epoch, True)
    found = [shot['epoch'] for shot in shown.snapshots]
    assert (found[0], found[-1]) == (0, 399) and len(found) <= SNAPSHOTS + 1 and entered
    assert '--norm_pix_loss' in dict(shown.report_sections()[0][1])['note']


def test_a_resumed_run_keeps_earlier_snapshots_of_the_same_mask_ratio(images):
    first = snapshots(images, 3)
    for epoch in range(3):
        first.on_epoch_end(epoch, False)
    resumed, other = (snapshots(images, 3, list(first.snapshots), 2, mask_ratio=ratio) for ratio in (.75, .5))
    # even if it ends before its first snapshot
    rows, before = (dict(shown.report_sections()[0][1])['strips'] for shown in (resumed, first))
    assert rows == before[:3] + before[-1:]
    assert other.report_sections() == []
    for one in (resumed, other):
        one.on_epoch_end(2, False)
    assert resumed.snapshots == first.snapshots and [shot['epoch'] for shot in other.snapshots] == [2]


def test_without_memory_for_reconstructions_a_resumed_run_reports_the_rest(images, tmp_path, monkeypatch, caplog):
    first = snapshots(images)
    first.on_epoch_end(0, False)
    monkeypatch.setattr(reconstructions, 'reconstruct', mock.Mock(side_effect=RuntimeError('out of memory')))
    made = make_report(tmp_path, '--epochs', '2', report_part=snapshots(images, earlier=first.snapshots, start=1))
    made.on_epoch_end(1)
    made.close(Preempted('stopped'))
    assert caplog.text.count('out of memory') == 1 and 'Curves' in Page(tmp_path / 'report.html').parts


def test_tensorboard_files_are_in_the_run_itself(pretrained):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    assert [path for path in pretrained.iterdir() if path.is_dir()] == []
    events = accumulator.EventAccumulator(str(pretrained))
    events.Reload()
    assert 'train_loss' in events.Tags()['scalars']
