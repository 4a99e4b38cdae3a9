"""The command that starts a run again."""
import os
import subprocess

import pytest

from util.distributed import World
from util.report import quoted, reproducing


@pytest.mark.parametrize('word', ['plain', "it's", '$(x)`y`', 'a\nb', '', '汉é😀', os.fsdecode(b"\xff\xe6 '\x1b")])
def test_a_shell_reads_every_word_back_from_one_line(word):
    said = subprocess.run(['bash', '-c', b'printf %s ' + os.fsencode(quoted(word))], stdout=subprocess.PIPE)
    assert said.stdout == os.fsencode(word) and '\n' not in quoted(word)


@pytest.mark.parametrize('size, environ, more, expected', [
    (1, {}, [], 'python main_pretrain.py'),
    (16, {'RANK': '0', 'WORLD_SIZE': '16', 'LOCAL_WORLD_SIZE': '8'}, ['--local_rank=0'],
     'python util/launch.py --nproc 8 --nnodes 2 --node_rank 0 --master_addr ADDRESS main_pretrain.py'),
    (4, {'SLURM_PROCID': '0', 'SLURM_NTASKS': '4'}, [], 'srun --ntasks=4 python main_pretrain.py'),
    (4, {}, ['--dist_on_itp'], 'mpirun -n 4 python main_pretrain.py --dist_on_itp')])
def test_the_command_starts_the_processes_that_there_were(size, environ, more, expected):
    words = ['/somewhere/main_pretrain.py', *more, '--data_path', 'a b']
    found = reproducing(World(0, size), words, environ).replace(' \\\n    ', ' ')
    assert found == expected + " --data_path 'a b'"
