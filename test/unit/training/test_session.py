"""A run leaves its process as it was, and the next one there does what one in a process of its own does."""
import os

import pytest
import torch
from conftest import PRETRAIN, assert_unchanged, finetune, process_state, succeeded
from test_end_to_end import moments_of, same, weights_of

from util.config.train_flags import parse_pretrain
from util.errors import UserError
from util.training.session import start_session

pytestmark = pytest.mark.compat


@pytest.mark.parametrize('failure', [None, ValueError])
def test_a_session_undoes_what_it_changed_even_after_a_failure(tmp_path, failure):
    args, before = parse_pretrain(['--data_path', str(tmp_path), *PRETRAIN]), process_state()
    noise = torch.random.get_rng_state()
    try:
        with start_session(args) as session:
            changed = process_state()
            assert all(changed[part] != before[part] for part in ('signal handlers', 'wake-up descriptor', 'logger'))
            assert changed['threads'] - before['threads'] == {'stop signals', 'hang detector'}
            session.seed(3, 2)
            if failure:
                raise failure
    except ValueError:
        pass
    assert_unchanged(before)
    assert torch.equal(noise, torch.random.get_rng_state())


def test_deterministic_algorithms_are_for_the_session_only_and_refused_by_a_pytorch_without(tmp_path, monkeypatch):
    args = parse_pretrain(['--data_path', str(tmp_path), *PRETRAIN, '--deterministic'])
    if hasattr(torch, 'use_deterministic_algorithms'):
        monkeypatch.setenv('HCCL_DETERMINISTIC', 'false')
        with start_session(args):
            assert torch.are_deterministic_algorithms_enabled() and os.environ['HCCL_DETERMINISTIC'] == 'true'
        assert not torch.are_deterministic_algorithms_enabled()
        monkeypatch.delattr(torch, 'use_deterministic_algorithms')
    with pytest.raises(UserError, match='--deterministic'), start_session(args):
        pass


def test_runs_in_one_process_equal_each_other_and_one_in_a_process_of_its_own(images, tmp_path):
    results = []
    for process in (False, False, True):
        folder = tmp_path / str(len(results))
        succeeded(finetune('--data_path', images, '--output_dir', folder, '--epochs', 1, '--drop_path', .2, '--mixup',
                           .8, '--cutmix', 1, '--reprob', .5, process=process))
        state = weights_of(folder / 'checkpoint-0.pth')
        results.append([state['model'], moments_of(state), state['best']])
    assert same(results[0], results[1]) and same(results[0], results[2])
