"""MAE_BIND_CORES=1: each process of a node keeps to its share of the cores, near one NUMA node, as by taskset.

A process and its loader workers then do not wander between the sockets of a large host.
"""
import glob
import os
import re


def bind(local_rank, local_processes, environ=os.environ):
    """Bind this process, and what it starts, to its share of the cores.

    Returns:
        the cores it has from now on, or None where nothing was asked for or the system cannot.
    """
    if environ.get('MAE_BIND_CORES') != '1' or local_processes < 2 or not hasattr(os, 'sched_setaffinity'):
        return None
    cores = share(numa_nodes(), os.sched_getaffinity(0), local_rank, local_processes)
    os.sched_setaffinity(0, cores)
    return cores


def share(nodes, allowed, local_rank, local_processes):
    """Cores of one process, as even and as near to each other as the numbers allow.

    Args:
        nodes: the cores of each NUMA node, e.g. [[0, 1], [2, 3]].
        allowed: the cores that all processes together may use; cores that no node lists come last.
    Returns:
        sorted cores; all of `allowed` where there are fewer cores than processes.
    """
    listed = [core for node in nodes for core in node if core in allowed]
    ordered = listed + sorted(set(allowed) - set(listed))
    count = len(ordered) // local_processes
    return sorted(ordered[local_rank * count:(local_rank + 1) * count] if count else ordered)


def numa_nodes(root='/sys/devices/system/node'):
    """The cores of each NUMA node of this host; empty where the system does not tell."""
    paths = glob.glob(os.path.join(root, 'node[0-9]*', 'cpulist'))
    nodes = []
    for path in sorted(paths, key=lambda path: int(re.search(r'node(\d+)', path).group(1))):
        with open(path, encoding='ascii') as file:
            nodes.append(parse(file.read().strip()))
    return nodes


def parse(text):
    """'0-2,8' -> [0, 1, 2, 8], the kernel's way of listing cores."""
    ends = [part.split('-') for part in text.split(',') if part]
    return [core for pair in ends for core in range(int(pair[0]), int(pair[-1]) + 1)]


def text(cores):
    """[0, 1, 2, 8] -> '0-2,8'."""
    runs = []
    for core in cores:
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ','.join(str(a) if a == b else '{}-{}'.format(a, b) for a, b in runs)
