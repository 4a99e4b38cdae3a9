"""The host, without torch: CPU cores and their binding, instruction sets, memory allocator, network."""
import ctypes
import os
import re
import socket
from contextlib import suppress
from typing import Callable, Collection, List, Optional, Set


def default_workers(local_world_size: int = 1, most: int = 10) -> int:
    """Cores available to this process, divided by the training processes of the node; 1 to `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, min(most, cores // local_world_size))


def bind_cores(local_rank: int, local_world_size: int, near_cores: Callable = list) -> str:
    """If MAE_BIND_CORES=1, bind this process and what it starts from now on to its share of the cores.

    `near_cores` returns the cores near the device of each local rank, which processes near the same ones share; nothing
    if unknown. Returns the share ('0-2,8'), or ''.
    """
    if os.environ.get('MAE_BIND_CORES') != '1' or local_world_size < 2 or not hasattr(os, 'sched_setaffinity'):
        return ''
    if os.environ.get('CPU_AFFINITY_CONF'):
        return 'set by CPU_AFFINITY_CONF'       # which the device's library reads
    allowed, near = os.sched_getaffinity(0), near_cores()
    near = [allowed.intersection(cores) for cores in near[:local_world_size]]
    if len(near) < local_world_size or not all(a and (a == b or not a & b) for a in near for b in near):
        near = [allowed] * local_world_size
    peers = [rank for rank in range(local_world_size) if near[rank] == near[local_rank]]
    os.sched_setaffinity(0, even_share(near[local_rank], peers.index(local_rank), len(peers)))
    with open('/proc/self/status', encoding='ascii', errors='replace') as file:
        return re.search(r'^Cpus_allowed_list:\s*(.*)$', file.read(), re.M).group(1)


def even_share(cores: Collection[int], index: int, processes: int) -> List[int]:
    """The share of process `index`, sorted; processes that outnumber the cores share them all."""
    ordered, count = sorted(cores), len(cores) // processes
    return ordered[index * count:(index + 1) * count] if count else ordered


def core_list(text: str) -> List[int]:
    """'0-2,8' -> [0, 1, 2, 8]; empty for other text."""
    ranges = [part.split('-') for part in text.strip().split(',') if re.match(r'\d+(-\d+)?$', part)]
    return [core for ends in ranges for core in range(int(ends[0]), int(ends[-1]) + 1)]


def cpu_flags() -> Set[str]:
    """Instruction sets of the CPU as named by /proc/cpuinfo; empty on other systems than Linux."""
    with suppress(OSError), open('/proc/cpuinfo', encoding='ascii', errors='replace') as file:
        return set(next((line for line in file if line.startswith('flags')), '').split())
    return set()


def keep_freed_memory() -> bool:
    """Let the C library cache the memory of freed CPU tensors; False if it does not support this.

    By default glibc returns large blocks to the system, and each step page-faults again (test/bench/results/step.md).
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    # malloc.h's M_MMAP_MAX, M_TRIM_THRESHOLD (the largest int) and M_TOP_PAD
    return bool(mallopt and mallopt(-4, 0) and mallopt(-1, 2 ** 31 - 1) and mallopt(-2, 2 ** 28))


def local_address_towards(host: str) -> Optional[str]:
    """Address of the local interface that routes to `host`; None for loopback and unreachable hosts."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))        # of UDP: consults the routing table and sends nothing
        address = probe.getsockname()[0]
        return None if address.startswith('127.') else address
    return None
