"""The Python that most tests run scripts by is like any other, but for its start."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import environment, execute, python

TELLS = """
import json, os, sys
print('flushed', flush=True)
print(json.dumps([sys.argv, sys.path[0], os.getcwd(), sys.stdin.read(), os.environ.get('MAE_TEST'), __name__]))
print('to stderr', file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
HANDLES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
open(sys.argv[1], 'w').close()
time.sleep(60)
"""


@pytest.fixture
def script(tmp_path):
    """Write code into a file; returns its path."""
    def write(code):
        path = tmp_path / 'script.py'
        path.write_text(code)
        return str(path)
    return write


def run(interpreter, *words, **options):
    return subprocess.run([interpreter, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, **options)


def started(program, path, *words):
    """A process that has come so far that the file `path` is there."""
    process = subprocess.Popen([program, *words, str(path)], env=environment())
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(.01)
    return process


@pytest.mark.parametrize('words', [[], ['-u']])
def test_a_script_finds_and_leaves_what_it_does_in_a_new_interpreter(script, tmp_path, words):
    words += [script(TELLS), '7', 'a b', '']
    options = {'cwd': str(tmp_path), 'input': b'to stdin', 'env': environment(MAE_TEST='é')}
    warm, new = (run(interpreter, *words, **options) for interpreter in (python(), sys.executable))
    assert (warm.returncode, warm.stdout, warm.stderr) == (new.returncode, new.stdout, new.stderr)
    assert warm.returncode == 7 and json.loads(warm.stdout.splitlines()[1])[0][2:] == ['a b', '']


def test_a_module_is_found_from_where_it_is_called(tmp_path):
    (tmp_path / 'mine.py').write_text(TELLS)
    warm, new = (run(interpreter, '-m', 'mine', '0', cwd=str(tmp_path), input=b'', env=environment())
                 for interpreter in (python(), sys.executable))
    told, expected = (json.loads(done.stdout.splitlines()[1]) for done in (warm, new))
    assert warm.returncode == 0 and told == expected


def test_code_is_read_from_standard_input():
    code = b'import sys; print(sys.argv, sys.path[0], __name__)'
    warm, new = (run(interpreter, '-', 'a', input=code, env=environment())
                 for interpreter in (python(), sys.executable))
    assert warm.returncode == 0 and warm.stdout == new.stdout


def test_pytorch_is_there_already(script):
    done = execute([sys.executable, script('import sys; print("torch" in sys.modules)')])
    assert done.output == 'True\n'


@pytest.mark.parametrize('changes', [{'PYTHONPATH': ''}, {'OMP_NUM_THREADS': '2'}, {'PYTHONHASHSEED': '1'}])
def test_a_variable_that_is_read_at_the_start_gets_an_interpreter_of_its_own(script, changes):
    done = run(python(), script('import sys; print("torch" in sys.modules)'), env=environment(**changes))
    assert done.stdout == b'False\n'


def test_a_signal_reaches_the_script(script, tmp_path):
    process = started(python(), tmp_path / 'ready', script(HANDLES))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75


def test_a_script_that_a_signal_ends_ends_its_caller_so(script):
    assert run(python(), script('import os; os.kill(os.getpid(), 9)'), env=environment()).returncode == -signal.SIGKILL


def test_nothing_is_left_of_one_that_is_killed(script, tmp_path):
    code = HANDLES.replace("'w').close()", "'w').write(str(__import__('os').getpid()))")
    process = started(python(), tmp_path / 'ready', script(code))
    while not (tmp_path / 'ready').read_text():
        time.sleep(.01)
    pid = int((tmp_path / 'ready').read_text())
    os.kill(pid, 0)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while os.path.exists('/proc/{}'.format(pid)) and time.monotonic() < deadline:
        time.sleep(.01)
    assert pid != process.pid and not os.path.exists('/proc/{}'.format(pid))
