"""A Python whose scripts start at once: in processes forked from one that has imported PyTorch, which takes seconds.

WarmPython(folder, environ).program is an executable to call as one calls python. It hands its arguments, environment
and standard streams to the server, passes signals on, and ends like the process that the server has forked; that
process dies when it dies. What is not forked runs in a new interpreter as ever: the code of -c, which tests look at an
interpreter by, and whatever has another value of a variable that is read as an interpreter or PyTorch starts.
"""
import array
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

READ_AT_START = ('PYTHON', 'OMP_', 'MKL_', 'LC_', 'LANG', 'LD_', 'HF_', 'TORCH_DEVICE_BACKEND_AUTOLOAD')
NOT_READ = ('PYTHON', 'PYTHONUNBUFFERED')       # the launchers' choice; what is done below
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
WAIT = 120.         # seconds for the imports


def read_at_start(environ):
    """The part of an environment that an interpreter has to be started with."""
    read = {name: value for name, value in environ.items() if name.startswith(READ_AT_START) and name not in NOT_READ}
    read['PYTHONPATH'] = list(dict.fromkeys(read.get('PYTHONPATH', '').split(os.pathsep)))      # twice is as once
    return read


class WarmPython:
    """The server and its program.

    Args:
        folder: an empty one, which is there for as long as the program is used.
        environ: the environment that the server imports PyTorch in.
    """

    def __init__(self, folder, environ):
        self.program = str(Path(folder) / 'python')
        address = str(Path(folder) / 'socket')
        Path(self.program).write_text('#!/bin/sh\nexec "{}" -IS "{}" "{}" "$0" "$@"\n'.format(
            sys.executable, __file__, address))
        os.chmod(self.program, 0o700)
        Path(address + '.json').write_text(json.dumps(read_at_start(environ)))
        # It ends with this process: at the end of its standard input.
        self._server = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.PIPE, env=environ,
                                        stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + WAIT
        while not os.path.exists(address):
            assert self._server.poll() is None and time.monotonic() < deadline, 'no warm Python'
            time.sleep(.02)


def call(address, program, *words):
    """The program: like `python words...`."""
    with open(address + '.json') as file:
        same = json.load(file) == read_at_start(os.environ)
    plain = [word for word in words[:1] if word != '-u'] + list(words[1:])
    if not same or not plain or not (plain[0] in ('-m', '-') or plain[0].endswith('.py')):
        os.execv(sys.executable, [sys.executable, *words])
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = {'words': plain, 'program': program, 'unbuffered': len(plain) < len(words), 'folder': os.getcwd(),
                   'environ': dict(os.environ), 'cores': list(os.sched_getaffinity(0)),
                   'ignored': [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN],
                   'blocked': list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))}
        line = json.dumps(request).encode()
        server.sendmsg([b'%8d' % len(line)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', (0, 1, 2)))])
        server.sendall(line)
        for number in PASSED_ON:
            if number not in request['ignored']:
                signal.signal(number, lambda number, frame: server.sendall(b'%d\n' % number))
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        status = json.loads(server.makefile().readline())
    if status < 0:
        with suppress(OSError):         # SIGKILL has no other action
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


class Server:
    """Forks a process for each that calls at `address`, until standard input ends."""

    def __init__(self, address):
        self._listener, self._selector = socket.socket(socket.AF_UNIX), selectors.DefaultSelector()
        self._callers = {}      # connection by pid
        hears, told = socket.socketpair()
        hears.setblocking(False)
        told.setblocking(False)
        signal.set_wakeup_fd(told.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._own = [self._listener, hears, told]
        self._listener.bind(address + '.new')
        self._listener.listen(64)
        os.rename(address + '.new', address)        # now it can be called
        for source, act in ((self._listener, self._answer), (hears, self._reap), (sys.stdin, self._end)):
            self._selector.register(source, selectors.EVENT_READ, act)

    def run(self):
        """Serve; returns a request in the process that is forked for it."""
        while True:
            for key, _ in self._selector.select():
                request = key.data(key.fileobj)
                if request:
                    return request

    def _answer(self, listener):
        caller, _ = listener.accept()
        size, ancillary, _, _ = caller.recvmsg(8, socket.CMSG_SPACE(3 * array.array('i').itemsize))
        streams = array.array('i', ancillary[0][2])
        request = json.loads(caller.recv(int(size), socket.MSG_WAITALL).decode())
        pid = os.fork()
        if not pid:
            for one in [*self._own, *self._callers.values(), caller]:
                one.close()
            self._selector.close()
            for i, stream in enumerate(streams):
                os.dup2(stream, i)
                os.close(stream)
            return request
        for stream in streams:
            os.close(stream)
        self._callers[pid] = caller
        self._selector.register(caller, selectors.EVENT_READ, lambda caller: self._pass_on(caller, pid))

    def _pass_on(self, caller, pid):
        """Signals, which are sent as lines; none comes any more of a caller that was killed."""
        received = caller.recv(1024)
        for number in received.split() or [signal.SIGKILL]:
            os.kill(pid, int(number))
        if not received:
            self._selector.unregister(caller)

    def _reap(self, hears):
        hears.recv(1024)
        while self._callers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            caller = self._callers.pop(pid)
            with suppress(KeyError):        # of one that was killed
                self._selector.unregister(caller)
            with suppress(OSError):
                caller.sendall(b'%d\n' % (os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)))
            caller.close()

    def _end(self, stdin):
        for pid in self._callers:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def stream(number, unbuffered, line_by_line, like):
    """Text to a file descriptor, as an interpreter that starts would write it."""
    return io.TextIOWrapper(open(number, 'wb', 0 if unbuffered else -1, closefd=False), like.encoding, like.errors,
                            line_buffering=line_by_line, write_through=unbuffered)


def become(words, program, unbuffered, folder, environ, cores, ignored, blocked):
    """Run in this process what `python words...` runs."""
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    os.sched_setaffinity(0, cores)
    sys.executable, tempfile.tempdir = program, None
    unbuffered = unbuffered or bool(environ.get('PYTHONUNBUFFERED'))
    sys.stdout = sys.__stdout__ = stream(1, unbuffered, os.isatty(1), sys.stdout)
    sys.stderr = sys.__stderr__ = stream(2, unbuffered, True, sys.stderr)
    for name in ('random', 'numpy.random'):
        sys.modules[name].seed()
    if words[0] == '-m':
        sys.path[0], sys.argv = folder, words[1:]
        sys.modules.pop(words[1], None)     # runpy would warn of it
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    elif words[0] == '-':
        sys.path[0], sys.argv = '', words
        exec(compile(sys.stdin.read(), '<stdin>', 'exec'), {'__name__': '__main__'})
    else:
        sys.path[0], sys.argv = os.path.dirname(os.path.realpath(words[0])), words
        runpy.run_path(words[0], run_name='__main__')


def serve(address):
    for name in ('main_pretrain', 'main_finetune', 'main_linprobe'):
        importlib.import_module(name)
    for name in ('torch.utils.tensorboard', 'torch.distributed.run'):
        with suppress(ImportError):         # not each generation has it
            importlib.import_module(name)
    gc.freeze()
    become(**Server(address).run())


if __name__ == '__main__':
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        call(*sys.argv[1:])
