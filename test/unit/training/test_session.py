"""A run leaves its process as it was."""
import pytest
import torch
from conftest import PRETRAIN, assert_unchanged, process_state

from util.config.train_flags import parse_pretrain
from util.distributed import hang_detector
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
    assert torch.equal(noise, torch.random.get_rng_state()) and hang_detector._detector is None
