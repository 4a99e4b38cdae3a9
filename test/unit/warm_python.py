"""A Python whose scripts start at once: in processes forked from one that has imported PyTorch, which takes seconds.

A program `python` hands its words, environment and streams to a thread of the tests, for which multiprocessing's fork
server makes the process; it passes signals on, and ends as that process does. The code of -c runs in a new interpreter.
"""
import json
import multiprocessing
import os
import runpy
import signal
import socket
import socketserver
import sys
import threading
from array import array
from contextlib import suppress
from multiprocessing.connection import Connection, wait

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
FORKED = multiprocessing.get_context('forkserver')


def start(folder, modules):
    """The path of the program, which is in the empty `folder`; processes begin with `modules` imported."""
    FORKED.set_forkserver_preload(modules)
    program, address = os.path.join(folder, 'python'), os.path.join(folder, 'socket')
    with open(program, 'w') as file:
        file.write('#!/bin/sh\nexec "{}" -IS "{}" "{}" "$0" "$@"\n'.format(sys.executable, __file__, address))
    os.chmod(program, 0o700)
    server = socketserver.ThreadingUnixStreamServer(address, Answer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return program


class Answer(socketserver.BaseRequestHandler):
    """The life of one process."""

    def handle(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)       # until the process knows what to do with them
        size, ancillary, _, _ = self.request.recvmsg(8, socket.CMSG_SPACE(3 * array('i').itemsize))
        streams = [Connection(number) for number in array('i', ancillary[0][2])]
        request = json.loads(self.request.recv(int(size), socket.MSG_WAITALL).decode())
        process = FORKED.Process(target=become, args=(streams,), kwargs=request)
        process.start()
        for stream in streams:
            stream.close()
        while process.sentinel not in wait([process.sentinel, self.request]):
            numbers = self.request.recv(1024).split()
            os.kill(process.pid, int(numbers[0]) if numbers else signal.SIGKILL)        # its caller was killed
            if not numbers:
                break
        process.join()
        with suppress(OSError):
            self.request.sendall(b'%d\n' % process.exitcode)


def become(streams, words, program, folder, environ, ignored, blocked):
    """Run in this process what `python words...` runs."""
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    for name, number, errors in (('stdout', 1, None), ('stderr', 2, 'backslashreplace')):
        setattr(sys, name, open(number, 'w', 1, errors=errors, closefd=False))       # noqa: SIM115
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.executable = program
    sys.path[:0] = [os.path.dirname(os.path.abspath(words[0])), *environ['PYTHONPATH'].split(os.pathsep)]
    if words[0] == '-m':
        sys.argv = words[1:]
        sys.modules.pop(words[1], None)         # runpy would warn of it
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name='__main__')


def call(address, program, *words):
    """The program: like `python words...`."""
    plain = words[1:] if words[0] == '-u' else words
    if not (plain[0] == '-m' or plain[0].endswith('.py')):
        os.execv(sys.executable, [sys.executable, *words])
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
        request = json.dumps({'words': plain, 'program': program, 'folder': os.getcwd(), 'environ': dict(os.environ),
                              'ignored': ignored, 'blocked': list(signal.pthread_sigmask(signal.SIG_BLOCK, []))})
        server.sendmsg([b'%8d' % len(request)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array('i', (0, 1, 2)))])
        server.sendall(request.encode())
        for number in set(SIGNALS) - set(ignored):
            signal.signal(number, lambda number, frame: server.sendall(b'%d\n' % number))
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        status = int(server.makefile().readline())
    if status < 0:
        with suppress(OSError):         # SIGKILL has no other action
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == '__main__':
    call(*sys.argv[1:])
