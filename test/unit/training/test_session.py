"""What a session sets up and ends, and that a run in a used process does what one in a new process does."""
import os
from contextlib import suppress

import pytest
import torch
from conftest import PRETRAIN, finetune, process_state, process_state_restored, succeeded
from test_end_to_end import moments_of, same, weights_of

from util.config.train_flags import parse_pretrain
from util.errors import UserError
from util.training.session import start_session

pytestmark = pytest.mark.compat


@pytest.mark.parametrize('failure', [None, ValueError])
def test_a_session_ends_its_threads_and_signal_handlers_even_after_a_failure(tmp_path, failure):
    args, before = parse_pretrain(['--data_path', str(tmp_path), *PRETRAIN]), process_state()
    with suppress(ValueError), start_session(args):
        changed = process_state()
        assert all(changed[part] != before[part] for part in ('signal handlers', 'wake-up descriptor'))
        assert changed['threads'] - before['threads'] == {'stop signals', 'hang detector'}
        if failure:
            raise failure


def test_deterministic_algorithms_are_refused_by_a_pytorch_without(tmp_path, monkeypatch):
    args = parse_pretrain(['--data_path', str(tmp_path), *PRETRAIN, '--deterministic'])
    if hasattr(torch, 'use_deterministic_algorithms'):
        monkeypatch.setenv('HCCL_DETERMINISTIC', 'false')
        with process_state_restored(), start_session(args):
            assert torch.are_deterministic_algorithms_enabled() and os.environ['HCCL_DETERMINISTIC'] == 'true'
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
