"""TensorBoard files: what SummaryWriter would write, and what happens when they cannot be written."""
import resource
import sys

import pytest
from conftest import write_file

from util.file_lock import RunLock
from util.reporting.run_logger import RunLogger

pytestmark = pytest.mark.compat


@pytest.fixture
def run_logger(tmp_path):
    """A function that makes the logger of a folder."""
    made = []

    def make(**options):
        made.append(RunLogger(str(tmp_path), None, RunLock(str(tmp_path)), **options))
        return made[-1]
    yield make
    for one in made:
        one.close()


def test_tensorboard_reads_scalars_and_drops_what_a_resumed_run_repeats(run_logger, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    first = run_logger()
    for epoch in (1, 2, 3):
        first.log_scalars(epoch, {'loss': epoch})
    first.close()
    resumed = run_logger(begin=2.)
    resumed.log_scalars(2, {'loss': 20.})
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars('loss')] == [(1000, 1.), (2000, 20.)]


def test_a_full_disk_is_one_line_and_no_thread_prints_a_traceback(run_logger, capfd, caplog):
    logger = run_logger()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        for epoch in range(3):
            logger.log_scalars(epoch, {'loss': 1.})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    logger.close()
    assert len(caplog.messages) == 1 and 'TensorBoard' in caplog.messages[0]
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('error', ['TypeError', 'AttributeError', 'ImportError'])
def test_a_tensorboard_that_does_not_load_is_one_line(run_logger, tmp_path, monkeypatch, caplog, error):
    for name in [name for name in sys.modules if name.split('.')[0] == 'tensorboard' or 'utils.tensorboard' in name]:
        monkeypatch.delitem(sys.modules, name)
    write_file(tmp_path / 'tensorboard' / '__init__.py', 'raise {}("no descriptors")'.format(error))
    monkeypatch.syspath_prepend(str(tmp_path))
    logger = run_logger()
    logger.log_scalars(1, {'loss': 1.})
    assert len(caplog.messages) == 1 and 'no descriptors' in caplog.messages[0]
