"""Ends a process whose peers have died or which all hang: in a bounded time, with one line that names the one to blame.

A thread in each process tells process 0 once a second where its main thread is. Process 0 judges, and all end by its
verdict; where process 0 itself is gone or silent, each of the others judges for itself. It is a thread, as the main
thread may wait for ever in a collective operation. It uses nothing of the collective library, whose own time-outs name
nobody, and differ between libraries.
"""
import os
import selectors
import socket
import sys
import threading
import time

from util import errors, links
from util.errors import FAULT_STATUS, STOPPED_STATUS, UNSAVED_STATUS, Fault, Nobody

BEAT = 1.                   # seconds between two messages
GRACE = 2.                  # seconds for the main thread to say itself why another process has ended
SILENCE = 60.               # seconds without a message, until a process on another host counts as dead
SLEPT = 10.                 # seconds that a beat is late, after which this process or its host was suspended
EXPLAIN = 10.               # seconds that a failed collective operation waits for the cause to be found
UNFINISHED = 60.            # seconds that a checkpoint may take yet which is being written when the process ends
NAMED = 8                   # processes that a line names at most
TOGETHER = (0, STOPPED_STATUS, UNSAVED_STATUS)      # statuses that all processes end with, each when it is ready


class Member:
    """What is known of a process; times are those of this one's clock."""

    def __init__(self, rank, now):
        self.rank, self.host, self.pid = rank, None, None
        self.place, self.moves, self.passed = 'its start', 0, 0
        self.heard = self.moved = now
        self.ended = self.status = None         # when, and with which status if it said so

    def hear(self, message, now):
        """Take in a message, a dict with any of the properties."""
        if message.get('moves', self.moves) != self.moves:
            self.moved = now
        for name in ('host', 'pid', 'place', 'moves', 'passed', 'status'):
            setattr(self, name, message.get(name, getattr(self, name)))
        self.heard = now
        if self.status is not None:
            self.end(now)

    def end(self, now):
        """Its connection has ended, or is about to."""
        if self.ended is None:
            self.ended = now

    @property
    def takes_part(self):
        return self.host is not None and self.ended is None


class Watchdog:
    """Of a process that is alone; `Hub` and `Peer` have others.

    Args:
        hang_timeout: seconds without progress of any process, until the run ends.
        host: name of this process's host.
    """

    def __init__(self, rank, size, hang_timeout, host=None):
        now = time.monotonic()
        self.size, self.hang_timeout = size, hang_timeout
        self.me = Member(rank, now)
        self.members = [self.me]                # those that this process hears of, by rank
        self.speaks = True                      # says a verdict of its own
        self._said = {'host': host or socket.gethostname(), 'pid': os.getpid(), 'place': 'its start', 'moves': 0,
                      'passed': 0}
        self.me.hear(self._said, now)
        self._over, self._lock = False, threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wakes, self._wake = os.pipe()
        self._selector.register(self._wakes, selectors.EVENT_READ, lambda: None)
        self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)

    def start(self):
        """Begin to watch; returns itself."""
        self._thread.start()
        return self

    def at(self, place, alone=False):
        """Progress: the main thread is at `place` now, a few words.

        Args:
            alone: other processes may not come by. The others are counted, to tell who is behind.
        """
        said = self._said
        self._said = dict(said, place=place, moves=said['moves'] + 1, passed=said['passed'] + (not alone))

    def tell(self, status):
        """This process is about to end with `status`; 0: it has done its part."""
        with self._lock:                        # a verdict that has begun ends the process
            self._over = True
        self._spread({'status': status})

    def stop(self):
        """Part from the others: who ends from now on alarms nobody."""
        self.tell(0)
        os.write(self._wake, b'.')
        if self._thread.is_alive():
            self._thread.join()
        for end in (self._wakes, self._wake):
            os.close(end)
        self._selector.close()

    def explain_failure(self):
        """Give the cause of a failed collective operation time to be found; returns where no process is to blame."""
        if self.size > 1:
            time.sleep(EXPLAIN)

    def _watch(self):
        before = due = time.monotonic()
        while not self._over:
            for key, _ in self._selector.select(max(0., due - time.monotonic())):
                key.data()
            now = time.monotonic()
            if now - before > BEAT + SLEPT:
                for member in self.members:
                    member.heard = member.moved = now
            before = now
            if now >= due and not self._over:
                due = now + BEAT
                self.me.hear(self._said, now)
                self._beat(now)
                self._judge(now)

    def _beat(self, now):
        """Tell the others where this process is."""

    def _spread(self, message):
        """Send what ends a connection."""

    def _judge(self, now):
        others = [member for member in self.members if member is not self.me]
        ended = [member for member in others if member.ended is not None and now - member.ended >= GRACE]
        for member in ended:
            if member.status is None:
                self._end('{} is gone, last seen at {}; the others end too'.format(self._name(member), member.place))
            if member.status not in TOGETHER:
                self._end('', member.status)
        here = [member for member in self.members if member.takes_part]
        idle = now - max(max(member.moved, member.ended or 0.) for member in self.members)      # leaving is moving too
        soon = min(SILENCE, self.hang_timeout)
        silent = [member for member in here if now - member.heard >= soon and member.host != self.me.host]
        if silent and idle >= soon:
            self._end('{} gives no sign of life for {:.0f} s, last seen at {}; the others end too'.format(
                self._name(silent[0]), now - silent[0].heard, silent[0].place))
        if idle >= self._hang_timeout() and not self._waits_for_newcomers():
            self._end('no progress for {:.0f} s: {}; see --hang_timeout'.format(idle, self._culprits(here, now)))

    def _hang_timeout(self):
        return self.hang_timeout

    def _waits_for_newcomers(self):
        return False

    def _culprits(self, here, now):
        """Who hangs where: those who are silent, else those who have come least far."""
        silent = [member for member in here if now - member.heard >= max(3 * BEAT, self.hang_timeout / 2)]
        least = min(member.passed for member in here)
        named = silent or [member for member in here if member.passed == least]
        texts = ['{} hangs at {}'.format(self._name(member), member.place) for member in named[:NAMED]]
        return ', '.join(texts) + (', and {} more'.format(len(named) - NAMED) if len(named) > NAMED else '')

    def _name(self, member):
        return 'process {} of {} (host {}, pid {})'.format(member.rank, self.size, member.host, member.pid)

    def _end(self, line, status=FAULT_STATUS, speaks=None):
        """End this process, whatever its main thread does."""
        with self._lock:
            if self._over:                      # the main thread was quicker
                return
            if line and (self.speaks if speaks is None else speaks):
                os.write(sys.__stderr__.fileno(), 'error: {}\n'.format(line).encode())
            self._spread({'status': status, 'line': line})
            limit = time.monotonic() + UNFINISHED
            for thread in threading.enumerate():
                if not thread.daemon and thread is not threading.main_thread():
                    thread.join(max(0., limit - time.monotonic()))
            os._exit(status)


class Hub(Watchdog):
    """Of process 0; the others need `address` to connect."""

    def __init__(self, size, hang_timeout, host=None):
        super().__init__(0, size, hang_timeout, host)
        now = time.monotonic()
        self.members += [Member(rank, now) for rank in range(1, size)]
        self._links, self._met = {}, threading.Event()
        self._listener = links.Listener()
        self.address = '{} {host} {pid}'.format(self._listener.address, **self._said)
        self._selector.register(self._listener, selectors.EVENT_READ, self._welcome)

    def meet(self, limit):
        """Return when all processes have connected.

        Raises:
            Fault: some have not within `limit` seconds.
        """
        if not self._met.wait(limit):
            missing = [str(member.rank) for member in self.members if member.host is None]
            raise Fault('no sign of process{} {} of {} within {:.0f} s; start all of them, each with the same master '
                        'address and port; see --hang_timeout'.format('es' * (len(missing) > 1), ', '.join(missing),
                                                                      self.size, limit))

    def stop(self):
        super().stop()
        for end in [self._listener, *self._links.values()]:
            end.close()

    def _welcome(self):
        link = self._listener.accept()
        if link is not None:
            self._selector.register(link, selectors.EVENT_READ, lambda: self._greeted(link))

    def _greeted(self, link):
        self._selector.unregister(link)
        messages, closed = link.receive()
        rank = messages[0].get('rank') if messages and self._listener.knows(messages[0]) else None
        if closed or rank not in range(1, self.size) or rank in self._links:
            link.close()
            return
        member = self.members[rank]
        self._links[rank] = link
        self._take(member, messages)
        self._selector.register(link, selectors.EVENT_READ, lambda: self._hear(member, link))
        if len(self._links) == self.size - 1:
            self._met.set()

    def _hear(self, member, link):
        messages, closed = link.receive()
        self._take(member, messages)
        if closed:
            self._selector.unregister(link)
            member.end(time.monotonic())

    @staticmethod
    def _take(member, messages):
        for message in messages:
            member.hear(message, time.monotonic())

    def _beat(self, now):
        # Progress of any process is progress of all; and one on each host is to speak if this process goes.
        moves, hosts = sum(member.moves for member in self.members), set()
        for member in self.members[1:]:
            if member.takes_part:
                self._links[member.rank].send(dict(self._said, moves=moves, speaks=member.host not in hosts))
                hosts.add(member.host)

    def _spread(self, message):
        for link in list(self._links.values()):
            link.send(message)

    def _waits_for_newcomers(self):
        return not self._met.is_set()


class Peer(Watchdog):
    """Of a process other than 0.

    Args:
        master, address: host of process 0, and its Hub's `address`.
    Raises:
        Fault: it cannot be reached.
    """

    def __init__(self, rank, size, hang_timeout, master, address, host=None):
        super().__init__(rank, size, hang_timeout, host)
        port, token, hub_host, hub_pid = address.split()
        self._hub = Member(0, time.monotonic())
        self._hub.hear({'host': hub_host, 'pid': int(hub_pid)}, time.monotonic())
        self.members, self.speaks = [self._hub, self.me], False
        try:
            self._link = links.connect(master, int(port), min(SILENCE, hang_timeout))
        except OSError as error:
            raise Fault('process {} cannot connect to process 0 at {}, port {} ({}); the processes need open ports '
                        'between their hosts'.format(rank, master, port, error)) from error
        self._link.send(dict(self._said, rank=rank, token=token))
        self._selector.register(self._link, selectors.EVENT_READ, self._hear)

    def stop(self):
        super().stop()
        self._link.close()

    def _hear(self):
        messages, closed = self._link.receive()
        for message in messages:
            if message.get('line'):             # of a host without process 0, one says it again for that host's log
                self._end(message['line'], message['status'], self.speaks and self._hub.host != self.me.host)
            self.speaks = message.get('speaks', self.speaks)
            self._hub.hear(message, time.monotonic())
        self.speaks = self.speaks or self._hub.status in TOGETHER       # from now on each for itself
        if closed:
            self._selector.unregister(self._link)
            self._hub.end(time.monotonic())

    def _beat(self, now):
        self._link.send(self._said)

    def _hang_timeout(self):
        return self.hang_timeout + 3 * BEAT             # process 0, which knows all, decides first

    def _spread(self, message):
        self._link.send({'status': message['status']})


class Unwatched(Nobody):
    """Of a process that has not begun to be watched, or no longer is."""

    def at(self, place, alone=False):
        pass

    def stop(self):
        pass


_current = Unwatched()


def begin(watchdog):
    """Have this process watched by `watchdog`; errors that end it are told to the others from now on."""
    global _current
    _current = errors.others = watchdog.start()


def stop():
    """No longer watch, and be no longer watched."""
    global _current
    _current.stop()
    _current = errors.others = Unwatched()


def at(place, alone=False):
    """Progress: see Watchdog.at."""
    _current.at(place, alone)


def watched(batches, where, first=0, alone=False):
    """(index, batch) of `batches`, counted from `first`; says `where` the main thread is, and that it moves."""
    at('{}, iteration {}: waiting for data'.format(where, first), alone)
    for i, batch in enumerate(batches, first):
        at('{}, iteration {}: at work'.format(where, i), alone)
        yield i, batch
        at('{}, iteration {}: waiting for data'.format(where, i + 1), alone)
    at('{}: all batches done'.format(where))
