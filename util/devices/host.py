"""MAE_BIND_CORES=1: each process and its loader workers keep to their share of a node's cores, near one NUMA node."""
import glob
import os
import platform
import re


def bind(local_rank, local_processes):
    """Bind this process, and what it starts, to its share of the cores.

    Returns:
        the cores it has from now on, such as '0-2,8', or '' where nothing was asked for or the system cannot.
    """
    if os.environ.get('MAE_BIND_CORES') != '1' or local_processes < 2 or not hasattr(os, 'sched_setaffinity'):
        return ''
    os.sched_setaffinity(0, share(numa_nodes(), os.sched_getaffinity(0), local_rank, local_processes))
    with open('/proc/self/status', encoding='ascii', errors='replace') as file:
        return re.search(r'^Cpus_allowed_list:\s*(.*)$', file.read(), re.M).group(1)


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
    nodes = []
    for path in sorted(glob.glob(os.path.join(root, 'node[0-9]*', 'cpulist')), key=lambda path: (len(path), path)):
        with open(path, encoding='ascii') as file:
            ends = [part.split('-') for part in file.read().strip().split(',') if part]         # such as 0-2,8
        nodes.append([core for pair in ends for core in range(int(pair[0]), int(pair[-1]) + 1)])
    return nodes


def software():
    """{name: version} of what results depend on."""
    import timm  # here: the launcher needs the rest of this module, and no seconds of imports
    import torch
    import torchvision
    return {'Python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__,
            'timm': timm.__version__}
MAX_DEFAULT_WORKERS = 10


def default_workers(local_processes=1, most=MAX_DEFAULT_WORKERS):
    """The cores this process may use, shared among the training processes of the node; 1 to `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, min(most, cores // local_processes))
