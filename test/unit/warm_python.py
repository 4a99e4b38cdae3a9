"""Runs Python scripts in processes that are forked from one which has imported PyTorch: the import would be most of
their time."""
import json
import os
import select
import subprocess
import sys
import tempfile

TIMEOUT = 600       # seconds
# Reads lines of [arguments, folder, file for the output] and answers with the wait status of each.
SERVER = """
import gc, json, os, runpy, sys
import main_finetune, main_linprobe, main_pretrain
try:
    import torch.utils.tensorboard
except ImportError:
    pass
gc.freeze()
print('ready', flush=True)
for line in sys.stdin:
    words, folder, log = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 1)
        os.dup2(1, 2)
        if words[0] == '-m':
            sys.path[0], sys.argv = folder, words[1:]
            runpy.run_module(words[1], run_name='__main__', alter_sys=True)
        else:
            sys.path[0], sys.argv = os.path.dirname(os.path.abspath(words[0])), words
            runpy.run_path(words[0], run_name='__main__')
        sys.exit()
    print(os.waitpid(child, 0)[1], flush=True)
"""


class WarmPython:
    """This interpreter, warm. What runs in it finds the environment of its start."""

    def __init__(self):
        self.environ = environment()
        self._server = subprocess.Popen([sys.executable, '-c', SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env=self.environ)
        self._answer()

    def run(self, words, folder):
        """(status, output) of `python words...` in a folder; the status is as subprocess has it."""
        with tempfile.NamedTemporaryFile() as log:
            line = json.dumps([[str(word) for word in words], str(folder), log.name]) + '\n'
            self._server.stdin.write(line.encode())
            self._server.stdin.flush()
            status = int(self._answer())
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status), log.read().decode(
                errors='replace')

    def _answer(self):
        if not select.select([self._server.stdout], [], [], TIMEOUT)[0]:
            self._server.kill()
            raise TimeoutError('{} s'.format(TIMEOUT))
        return self._server.stdout.readline()


def environment():
    """That of commands that tests run: one thread, as there are so many of them."""
    return {**{name: value for name, value in os.environ.items() if name != 'PYTEST_CURRENT_TEST'},
            'OMP_NUM_THREADS': '1'}
