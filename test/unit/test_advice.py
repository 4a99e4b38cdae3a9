"""What is said before the hours are spent: each line where it is due, and none elsewhere."""
import os
import re
import shutil

import pytest
from conftest import finetune, pretrain

from util import advice
from util.advice import FINETUNING, PRETRAINING
from util.datasets import labelled_set, pretraining_set
from util.drawn_dataset import CLASSES


def said(lines, *words):
    """The lines are as many as the words, and match them."""
    assert len(lines) == len(words) and all(re.search(word, line) for word, line in zip(words, lines)), lines


@pytest.mark.parametrize('epochs, warmup, lr, min_lr, scale, words', [
    (400, 40, 2.4e-3, 0, 1, []), (50, 5, 4e-3, 1e-6, .65 ** 25, []), (1, 0, 1e-3, 1e-3, 1, []),
    (10, 40, 1e-3, 0, 1, ['--warmup_epochs 40 of --epochs 10: .* reaches 25% of its peak; 1 would be a tenth']),
    (10, 10, 1e-3, 0, 1, ['reaches 100% of its peak']),
    (10, 1, 1e-7, 1e-6, 1, ['--min_lr 1e-06 is above the peak learning rate 1e-07']),
    (10, 1, 1e-10, 0, 1, ['a peak learning rate of 1e-10 moves weights by less than fp32 can tell']),
    (10, 1, 1e-3, 0, 1e-7, ['--layer_decay leaves the lowest layer a peak learning rate of 1e-10'])])
def test_a_schedule_that_learns_nothing_is_told(epochs, warmup, lr, min_lr, scale, words):
    said(advice.schedule(epochs, warmup, lr, min_lr, scale), *words)


def test_the_least_learning_rate_is_where_fp32_begins_to_move_a_weight():
    import torch
    for factor, moves in ((.99, False), (1.01, True)):
        assert (torch.tensor(.02) + advice.LEAST_LR * factor != torch.tensor(.02)) == moves


@pytest.mark.parametrize('effective, accum, images, lr, recipe, words', [
    (4096, 1, 10 ** 6, None, PRETRAINING, []), (2048, 1, 10 ** 6, None, FINETUNING, []),
    (32, 1, 10 ** 6, None, PRETRAINING, []), (8, 1, 10 ** 6, None, FINETUNING, []),
    (16, 2, 10 ** 6, None, PRETRAINING, ['an effective batch of 16 .* has 4096; .* --accum_iter 4 makes it 32']),
    (4, 1, 10 ** 6, None, FINETUNING, ['an effective batch of 4 .* --accum_iter 2 makes it 8']),
    (16384, 1, 10 ** 6, None, PRETRAINING, [r'is 4 times that of the published recipe \(4096\)']),
    (16384, 1, 10 ** 6, 5e-3, PRETRAINING, []),
    (1024, 16, 1000, None, FINETUNING, ['of 1024 is more than the 1000 training images: .* one step, on 960 of them']),
    (4096, 1, 10 ** 6, 1.5e-4, PRETRAINING, [r'--lr 0\.00015 is 0\.062 times .*, 0\.0024; --blr 0\.00015 follows']),
    (64, 1, 10 ** 6, .1, PRETRAINING, [r'--lr 0\.1 is 2700 times']), (32, 1, 10 ** 6, 1.5e-3, PRETRAINING, [])])
def test_a_batch_far_from_the_recipe_or_the_data_is_told(effective, accum, images, lr, recipe, words):
    said(advice.batch(effective, accum, images, lr, recipe), *words)


@pytest.mark.parametrize('names, counts, words', [
    (['cat', 'dog'], [5, 900], []), (['cat'], [900], ["one class, 'cat'"]),
    (['.ipynb_checkpoints', '__MACOSX', 'cat'], [9, 9, 9], ['a program.*: .ipynb_checkpoints, __MACOSX; remove']),
    (['Val', 'train'], [9, 9], ['named like a part of the data.*: Val, train; is there a level']),
    (['Cat', 'cat', 'dog'], [9, 9, 9], ['differ in capital letters alone: Cat, cat$']),
    (['cat', 'dog'], [4, 9], [r'1 of 2 classes has fewer than 5 training images: cat \(4\)$']),
    (list('abcdefg'), [1] * 7, [r'7 of 7 classes have .*: a \(1\), .*e \(1\), \.\.\.$'])])
def test_suspicious_classes_are_told(names, counts, words):
    said(advice.classes(names, counts), *words)


def test_classes_without_validation_images_are_told():
    said(advice.unjudged(['a', 'b', 'c'], [0, 1, 0]), '^no validation images of 2 of 3 classes: a, c$')
    said(advice.unjudged(['a', 'b'], [1, 1]))


def test_hidden_folders_and_those_of_programs_are_told_in_pretraining(images, tmp_path):
    for name in ('a/__MACOSX', '.trash/b', 'c'):
        shutil.copytree(str(images / 'train' / 'star_checks'), str(tmp_path / name))
    said(advice.folders(pretraining_set(str(tmp_path)).paths),
         r'^8 images are in folders made by a program: \.trash/b, a/__MACOSX;')
    said(advice.folders(pretraining_set(str(images)).paths))


def test_images_that_two_csv_files_share_are_told(images, tmp_path):
    os.symlink(str(images / 'train'), str(tmp_path / 'x'))
    paths = sorted(images.glob('train/*/*.jpg'))
    rows = ['{}x/{}/{},{}\n'.format('', path.parent.name, path.name, path.parent.name) for path in paths]
    (tmp_path / 'train.csv').write_text(''.join(rows[:30]))
    (tmp_path / 'val.csv').write_text(''.join('./' + row for row in rows[28:]))
    sets = [labelled_set(str(tmp_path), split) for split in ('train', 'val')]
    said(advice.shared(*sets), '^2 of the 4 validation images are trained on too, such as ' + str(tmp_path) + '/x/')
    said(advice.shared(sets[0], labelled_set(str(images), 'val')))


def test_warnings_stand_at_the_head_of_the_log_before_the_first_iteration(images, tmp_path):
    for name in (CLASSES[0], '.hidden'):
        shutil.copytree(str(images / 'train' / CLASSES[0]), str(tmp_path / 'data' / name))
    run = finetune('--data_path', tmp_path / 'data', '--output_dir', tmp_path / 'o', '--epochs', 1, '--lr', 1e-12,
                   '--batch_size', 2, '--accum_iter', 8)
    head, _, rest = run.output.partition('Epoch: [0]')
    assert run.status == 0 and '\nwarning: ' not in rest, run.output
    warnings = [line for line in head.splitlines() if line.startswith('warning: ')]
    said(warnings, '--warmup_epochs', '--min_lr', 'less than fp32', 'more than the 6 training', 'a program', 'fewer')
    run = pretrain('--data_path', tmp_path / 'data', '--output_dir', tmp_path / 'p', '--epochs', 2)
    warnings = [line for line in run.output.splitlines() if line.startswith('warning: ')]
    said(warnings, 'an effective batch of 8', '4 images are in folders made by a program')


def test_evaluation_knows_classes_by_name_and_tells_which_it_cannot_judge(images, tmp_path):
    run = finetune('--data_path', images, '--output_dir', tmp_path / 'o', '--epochs', 1)
    assert run.status == 0, run.output
    for name in sorted(CLASSES)[3:5]:
        shutil.copytree(str(images / 'val' / name), str(tmp_path / 'few' / 'val' / name))
    run = finetune('--data_path', tmp_path / 'few', '--output_dir', tmp_path / 'e', '--eval', '--resume',
                   tmp_path / 'o' / 'checkpoint-0.pth')
    assert run.status == 0 and 'warning: no validation images of 6 of 8 classes: cross_checks' in run.output, run.output
    (tmp_path / 'few' / 'val' / CLASSES[3]).mkdir(exist_ok=True)
    (tmp_path / 'few' / 'val' / sorted(CLASSES)[3]).rename(tmp_path / 'few' / 'val' / sorted(CLASSES)[3].upper())
    run = finetune('--data_path', tmp_path / 'few', '--output_dir', tmp_path / 'e', '--eval', '--resume',
                   tmp_path / 'o' / 'checkpoint-0.pth')
    assert run.status == 2 and 'which the training data have not; they have' in run.output.splitlines()[-1]
