"""Which output is which class: by the names in a checkpoint or in --class_names, else only where it is certain."""

import numpy as np
import pytest
from conftest import NANO, finetune, nano_vit, succeeded
from test_datasets import class_folders
from test_end_to_end import epochs_of

from util.checkpoints import pth_file
from util.checkpoints.checkpointer import Checkpointer
from util.config.train_flags import parse_finetune
from util.devices.accelerator import Cpu
from util.distributed.world import World
from util.errors import UserError
from util.training import setup
from util.training.session import Session

NUMBERS = ['%02d' % number for number in range(12)]         # class names of the training


def folders(root, names):
    """A data set of an image in each of these class folders."""
    for split in ('train', 'val'):
        class_folders(root / split, names)
    return root


def labels(tmp_path, data, lines=None, eval=True, **names):
    """{folder: label} of a classifier of 12 classes, with `names` in its checkpoint, `lines` in --class_names."""
    pth_file.save(str(tmp_path / 'x.pth'), {'model': nano_vit(num_classes=12).state_dict(), **names})
    flags = ['--model', 'vit_nano_patch16', *NANO, '--data_path', data, '--resume', tmp_path / 'x.pth',
             '--num_workers', 0, '--batch_size', 2, *['--eval'] * eval]
    if lines:
        (tmp_path / 'names.txt').write_text('\n'.join(lines) + '\n')
        flags += ['--class_names', tmp_path / 'names.txt']
    args, session = parse_finetune(list(map(str, flags))), Session(Cpu(), World())
    checkpointer = Checkpointer(None, args.resume)
    classes = setup.class_names(args, checkpointer)
    loader = setup.build_evaluation_loader(args, session, classes, checkpointer.get('labels')) if eval else \
        setup.build_loaders(args, session, lambda image: image, classes)[0]
    dataset = loader.dataset
    assert setup.count_classes(args, dataset, checkpointer) == 12
    return {dataset.name_of(i).split('/')[-2]: int(label) for i, label in enumerate(np.asarray(dataset.labels))}


@pytest.mark.parametrize('eval', [True, False])
@pytest.mark.parametrize('present', [[str(number) for number in range(12)], ['2', '10', '11']])
def test_names_that_may_be_in_another_order_or_a_part_of_them_need_a_stated_order(images, tmp_path, present, eval):
    data = folders(tmp_path / 'data', present)
    with pytest.raises(UserError, match='^{}: .*--class_names'.format(tmp_path / 'x.pth')) as caught:
        labels(tmp_path, data, eval=eval)
    assert 'nb_classes' not in str(caught.value)
    assert labels(tmp_path, data, lines=map(str, range(12)), eval=eval) == {name: int(name) for name in present}


def test_names_in_the_checkpoint_and_an_order_that_is_certain_need_no_file(images, tmp_path):
    data = folders(tmp_path / 'data', NUMBERS[3:6])
    for key in ('classes', 'labels'):
        assert labels(tmp_path, data, **{key: NUMBERS[::-1]}) == {'03': 8, '04': 7, '05': 6}
    data = folders(tmp_path / 'all', NUMBERS)
    assert labels(tmp_path, data) == {name: int(name) for name in NUMBERS}


@pytest.mark.parametrize('lines', [
    NUMBERS[:11], [*NUMBERS, '12'], ['x', *NUMBERS[1:]], [*NUMBERS[:11], *NUMBERS[:1]]], ids=str)
def test_a_file_that_does_not_fit_is_rejected(images, tmp_path, lines):
    data = folders(tmp_path / 'data', NUMBERS)
    with pytest.raises(UserError, match='--class_names|--data_path'):
        labels(tmp_path, data, lines=lines)


def test_training_by_a_file_of_names_labels_by_it_and_keeps_it(images, tmp_path):
    names = ['absent', *sorted((path.name for path in (images / 'train').iterdir()), reverse=True)]
    (tmp_path / 'names.txt').write_text('\n'.join(names))
    succeeded(finetune('--data_path', images, '--output_dir', tmp_path / 'o', '--epochs', 1, '--class_names',
                       tmp_path / 'names.txt'))
    state = pth_file.load(str(tmp_path / 'o' / 'checkpoint-0.pth'))
    assert state['classes'] == names and len(state['model']['head.weight']) == 9
    flags = ['--data_path', images, '--output_dir', tmp_path / 'o', '--resume', 'auto', '--epochs', 2]
    assert finetune(*flags).status == 0 and len(epochs_of(tmp_path / 'o')) == 2         # the names of the checkpoint
    assert pth_file.load(str(tmp_path / 'o' / 'checkpoint-1.pth'))['classes'] == names
