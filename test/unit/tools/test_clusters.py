"""Slurm, Kubernetes, Volcano, containers and the GitHub workflow: linted, and their commands run without a cluster."""
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, execute, signal_when_trapped, slow_kill, succeeded
from test_style import tool

from util.config import train_flags
from util.tools import launch

SLURM = ROOT / 'test' / 'slurm.sbatch'
DOCKERFILES = sorted(ROOT.glob('docker/*.Dockerfile'))
WORKFLOW = ROOT / '.github' / 'workflows' / 'ci.yml'

newest = pytest.mark.skipif(sys.version_info < (3, 10), reason='the linters of clusters\' files need Python 3.10')

# Starts one task per node, as `srun --ntasks-per-node=1`, but all on this host; forwards signals, prints the outputs.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
tasks=() status=0
trap 'signalled=yes; builtin kill -USR1 "${tasks[@]}"' USR1
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node SLURM_PROCID=$node SLURM_NTASKS=$SLURM_JOB_NUM_NODES "$@" >"$0.$node" 2>&1 &
    tasks+=($!)
done
for task in "${tasks[@]}"; do
    signalled=yes
    while [[ $signalled ]]; do
        signalled='' ended=0
        wait "$task" || ended=$?
    done
    ((ended > status)) && status=$ended
done
cat "$0".*
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo gpu7 && sleep .1 && echo gpu8; else echo "asked: scontrol $*"; fi
"""


def check_printed(command, root=ROOT):
    """Parse what a launcher of `root` prints under DRY_RUN=1, as the processes which it starts would.

    Returns (flags of util/tools/launch.py, or None where one process is started without it; flags of the script).
    """
    interpreter, script, *flags = shlex.split(command)
    assert os.access(interpreter, os.X_OK), command
    started, script = None, os.path.relpath(script, str(root))
    if script == os.path.join('util', 'tools', 'launch.py'):
        started, (script, *flags) = launch.parse(flags)
    parse = {'main_pretrain.py': train_flags.parse_pretrain, 'main_finetune.py': train_flags.parse_finetune,
             'main_linprobe.py': train_flags.parse_linprobe}[os.path.relpath(script, str(root))]
    return started, parse(flags)


@pytest.fixture
def cluster(tmp_path):
    """Environment of a Slurm job on this host, with fake srun and scontrol."""
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {'PATH': '{}:{}'.format(tmp_path, os.environ['PATH']), 'SLURM_JOB_ID': '4711', 'SLURM_JOB_NUM_NODES': '1',
            'SLURM_JOB_NODELIST': 'gpu[7-8]', 'PYTHON': sys.executable}


def submit(cluster, *words, **environ):
    return execute(['bash', SLURM, *words], **{**cluster, **environ})


@pytest.mark.parametrize('nodes, master', [(1, None), (2, ('gpu7', 24711))])
def test_a_job_starts_a_launcher_on_each_node_with_a_common_master_and_resume(cluster, images, nodes, master):
    run = submit(cluster, ROOT / 'test' / 'pretrain_full_8p.sh', '--data_path', images, DRY_RUN='1',
                 SLURM_JOB_NUM_NODES=str(nodes))
    assert run.status == 0 and len(run.output.splitlines()) == nodes
    for rank, line in enumerate(sorted(run.output.splitlines())):
        started, flags = check_printed(line)
        assert (started.devices, started.nnodes, started.node_rank) == (8, nodes, rank)
        assert master in (None, (started.master_addr, started.master_port))
        assert (flags.resume, flags.epochs, flags.data_path) == ('auto', 400, str(images))


def test_an_explicit_resume_is_kept_and_a_script_without_resume_gets_none(cluster, tmp_path):
    run = submit(cluster, ROOT / 'test' / 'finetune_eval_8p.sh', '--data_path', tmp_path, '--resume_pth', __file__,
                 DRY_RUN='1')
    assert check_printed(run.output)[1].resume == __file__
    assert submit(cluster, ROOT / 'test' / 'cifar10_1p.sh', '--data_path', tmp_path, DRY_RUN='1').status == 0


@pytest.mark.parametrize('status, requeued', [(75, True), (70, False)])
def test_a_job_is_requeued_only_after_a_preemption_that_saved(cluster, tmp_path, status, requeued):
    (tmp_path / 'launcher.sh').write_text('exit {}\n'.format(status))
    run = submit(cluster, tmp_path / 'launcher.sh')
    assert run.status == status and ('asked: scontrol requeue 4711' in run.output) == requeued


def test_a_warning_to_the_batch_shell_reaches_the_launcher_of_every_node(cluster, tmp_path):
    """The launchers exit before the shell continues after signalling them."""
    (tmp_path / 'launcher.sh').write_text('trap "echo saved; exit 75" USR1\n: >{}/at_work-$NODE_RANK\n'
                                          'for ((i = 0; i < 600; i++)); do sleep .1; done\n'.format(tmp_path))
    job = subprocess.Popen(['bash', str(SLURM), str(tmp_path / 'launcher.sh')], stdout=subprocess.PIPE,
                           env={**os.environ, **cluster, 'SLURM_JOB_NUM_NODES': '2', **slow_kill(.5)})
    deadline = time.time() + 60
    while len(list(tmp_path.glob('at_work-*'))) < 2 and time.time() < deadline:
        time.sleep(.05)
    signal_when_trapped(job, signal.SIGUSR1)
    output = job.communicate(timeout=60)[0].decode()
    assert job.returncode == 75 and output.count('saved\n') == 2 and output.count('asked: scontrol requeue') == 1


@pytest.mark.parametrize('words, environ', [([], {}), ([ROOT / 'test' / 'demo.sh'], {'SLURM_JOB_ID': ''})])
def test_a_usage_error_of_the_job_script_is_one_line(cluster, words, environ):
    run = submit(cluster, *words, **environ)
    assert (run.status, run.output.count('\n')) == (2, 1)


def manifests(name):
    """The YAML documents of a file in test/k8s."""
    return list(yaml.safe_load_all((ROOT / 'test' / 'k8s' / name).read_text()))


def containers():
    """(number of nodes, pod, environment added by the cluster on node 1) of each job."""
    service, job = manifests('job.yaml')
    spec = job['spec']
    assert service['metadata']['name'] == spec['template']['spec']['subdomain']         # gives node 0 its host name
    assert service['spec']['selector'] == {'job-name': job['metadata']['name']}
    assert spec['completions'] == spec['parallelism'] and spec['completionMode'] == 'Indexed'
    yield spec['completions'], spec['template']['spec'], {'NODE_RANK': '1'}
    volcano, = manifests('vcjob.yaml')
    task, = volcano['spec']['tasks']
    assert volcano['spec']['minAvailable'] == task['replicas'] and {'env', 'svc'} <= set(volcano['spec']['plugins'])
    hosts = ','.join('{0}-{1}-{2}.{0}'.format(volcano['metadata']['name'], task['name'], node)
                     for node in range(task['replicas']))
    added = {'VC_TASK_INDEX': '1', 'VC_{}_HOSTS'.format(task['name'].upper()): hosts}      # by the plugins env and svc
    yield task['replicas'], task['template']['spec'], added


@pytest.mark.parametrize('nodes, pod, environ', list(containers()), ids=['job', 'volcano'])
def test_a_pod_runs_a_launcher_with_all_its_devices(images, tmp_path, nodes, pod, environ):
    (tmp_path / 'x.pth').write_bytes(b'')
    container, = pod['containers']
    given = {entry['name']: entry.get('value', '') for entry in container['env']}
    words = [re.sub(r'/data/\w+\.pth', str(tmp_path / 'x.pth'), word).replace('/data/imagenet', str(images))
             for word in container['command'] + container['args']]
    run = subprocess.run(words, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         env={**os.environ, **given, **environ, 'DRY_RUN': '1', 'PYTHON': sys.executable})
    started, flags = check_printed(run.stdout.decode())
    devices, = [int(count) for name, count in container['resources']['limits'].items()
                if name in ('nvidia.com/gpu', 'huawei.com/Ascend910')]
    assert (started.devices, started.nnodes, started.node_rank) == (devices, nodes, 1)
    assert re.match(r'mae(-node)?-0\.mae$', started.master_addr) and flags.resume == 'auto'
    assert flags.output_dir.startswith('/output/')
    # The launcher may take 300 s to stop; DataLoader workers need shared memory.
    assert pod['terminationGracePeriodSeconds'] > started.stop_timeout and pod['restartPolicy'] == 'Never'
    assert [mount['mountPath'] for mount in container['volumeMounts']] == ['/data', '/output', '/dev/shm']


@pytest.mark.parametrize('path', DOCKERFILES, ids=lambda path: path.name)
def test_a_container_image_has_the_tested_torch_and_existing_files(path):
    text = path.read_text()
    release = re.search(r'2\.x\) TORCH=\((\S+) (\S+)\)', (ROOT / 'test' / 'lib' / 'python.sh').read_text()).groups()
    if 'pip install torch' in text:
        assert 'pip install {} {}'.format(*release) in text
    else:
        assert re.search(r'^FROM pytorch/pytorch:(\S+?)-cuda', text, re.M).group(1) == release[0].split('==')[1]
    for name in re.findall(r'-r (\S+)', text):
        assert (ROOT / name).is_file() and '\nCOPY {} .\n'.format(name) in text
    for script in re.findall(r'(test/\S+\.sh)', text):
        assert (ROOT / script).is_file()


@newest
@pytest.mark.parametrize('name, words', [
    ('hadolint', ['--no-color', *DOCKERFILES]),
    ('yamllint', ['--strict', '-d', '{extends: default, rules: {line-length: {max: 120}, document-start: disable, '
                  'truthy: {check-keys: false}}}', ROOT / 'test' / 'k8s', ROOT / '.github']),
    ('check-jsonschema', ['--builtin-schema', 'vendor.github-workflows', WORKFLOW])])
def test_a_linter_finds_nothing(name, words):
    succeeded(execute([tool(name), *words]))
