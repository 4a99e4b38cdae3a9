"""Fault injection stress test: python test/bench/stress.py [--short] [--seed N]

Kills runs at random moments, with one process, with two and under --max_restarts, and compares their results with
those of uninterrupted runs; freezes processes, stops runs by signals, feeds broken images and corrupted checkpoints,
fills the disk at every stage of a save; prints a table. The full disk needs permission to mount a tmpfs. The long form
takes about half an hour.
"""
import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'test' / 'lib')]

import fuzzed_images
import synthetic_dataset

import util  # noqa: F401  (before torch: it keeps `import torch` from loading a broken torch_npu)

import torch

from util.checkpoints import checkpointer, pth_file
from util.errors import UserError
from util.data.image_files import UnreadableImage
from util.data.lazy_image import open_image

NANO = ['--model', 'mae_vit_nano_patch16', '--input_size', '32', '--patch_size', '8', '--batch_size', '8',
        '--device', 'cpu', '--warmup_epochs', '1', '--num_workers', '1']


class Row:
    """Row of the table."""

    def __init__(self, what):
        self.what, self.tried, self.survived, self.lost, self.note = what, 0, 0, [], ''

    def count(self, survived, why=''):
        self.tried += 1
        self.survived += bool(survived)
        self.lost += [] if survived else [why]
        print('{}: {} tried, {} survived{}'.format(self.what, self.tried, self.survived,
                                                   '' if survived else '; LOST: ' + why), flush=True)


def command(data, folder, epochs, processes=1, flags=(), max_restarts=0):
    """Command line of a pre-training that saves as often as possible."""
    launcher = [ROOT / 'util' / 'tools' / 'launch.py', '--nproc', processes, '--max_restarts', max_restarts]
    launcher = launcher if processes > 1 else []
    return [str(word) for word in (sys.executable, '-u', *launcher, ROOT / 'main_pretrain.py', *NANO, '--data_path',
                                   data, '--output_dir', folder, '--epochs', epochs, '--save_every_minutes', 1e-5,
                                   '--resume', 'auto', *flags)]


def started(words, log, and_trains=False):
    """Start a command with its output in `log`; `and_trains`: wait for its first iterations."""
    with open(str(log), 'wb') as output:
        child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
    while and_trains and 'Epoch: [' not in log.read_text() and child.poll() is None:
        time.sleep(.1)
    return child


def result_of(folder, epochs):
    """(weights, lines of log.txt without times) of a finished run."""
    state = pth_file.load(str(folder / 'checkpoint-{}.pth'.format(epochs - 1)))
    lines = [json.loads(line) for line in (folder / 'log.txt').read_text().splitlines()]
    return state['model'], [{name: value for name, value in line.items() if name not in ('FPS', 'data_wait')}
                            for line in lines]


def equal(one, other):
    """Whether two results are bit-equal."""
    return one[1] == other[1] and all(torch.equal(weight, other[0][name]) for name, weight in one[0].items())


def damage(folder):
    """Damage in a folder after a kill: unreadable checkpoints, lines of log.txt that are not JSON."""
    bad, log = [], folder / 'log.txt'
    try:
        for path in checkpointer.numbered(str(folder)):
            pth_file.load(path)
        for line in log.read_text().splitlines() if log.exists() else []:
            json.loads(line)
    except (UserError, ValueError) as error:
        bad.append(str(error))
    return bad


def kills(data, work, rng, count, epochs, processes):
    """Kill a run at random moments, resume it, and compare its result with that of an uninterrupted run."""
    row = Row('kill of {} at a random moment'.format('a run' if processes == 1 else 'one of two processes'))
    whole, log, worst, ended = work / 'whole-{}'.format(processes), work / 'kills.log', 0., 0
    assert started(command(data, whole, epochs, processes), log).wait() == 0
    while row.tried < count or not ended:
        folder = work / 'killed-{}-{}'.format(processes, ended)
        child = started(command(data, folder, epochs, processes), log)
        try:
            status = child.wait(timeout=rng.uniform(1, 12) + 3 * (processes > 1) if row.tried < count else None)
        except subprocess.TimeoutExpired:
            began = time.monotonic()
            victim = child.pid if processes == 1 else rng.choice(trained_by(child.pid) or [child.pid])
            os.kill(victim, signal.SIGKILL)
            status = child.wait()
            if status:                      # else it was at its very end
                worst = max(worst, time.monotonic() - began)
                wrong = damage(folder) + ['a traceback'] * ('Traceback' in log.read_text())
                row.count(not wrong, '; '.join(wrong))
                continue
        check_result(row, whole, folder, epochs, status, log)
        ended += 1
    row.note = '{} runs completed, bit-equal; all processes ended within {:.0f} s of a kill'.format(ended, worst)
    return row


def check_result(row, whole, folder, epochs, status, log):
    """Count a failure if a killed and resumed run differs from the uninterrupted one."""
    if status or not equal(result_of(whole, epochs), result_of(folder, epochs)):
        row.count(False, 'status {}, or another result: {}'.format(status, log.read_text()[-300:]))


def restarts(data, work, rng, count, epochs):
    """Kill either process at random moments of a run that its launcher restarts, until it completes."""
    row, folder = Row('kill of one of two processes under --max_restarts'), work / 'restarted'
    words = command(data, folder, epochs, 2, max_restarts=count)
    begun, killed, child = time.monotonic(), 0, started(words, work / 'restarts.log')
    while child.poll() is None and killed < count:
        time.sleep(rng.uniform(2, 12))
        trained = trained_by(child.pid)
        if len(trained) == 2:
            os.kill(rng.choice(trained), signal.SIGKILL)
            killed += 1
            while trained_by(child.pid):        # until the others have noticed
                time.sleep(.1)
    row.tried = row.survived = killed
    check_result(row, work / 'whole-2', folder, epochs, child.wait(), work / 'restarts.log')
    row.note = 'the run completed as the uninterrupted one, after {:.0f} s'.format(time.monotonic() - begun)
    return row


def freezes(data, work, rng, count):
    """Freeze one of two processes at a random moment; both must end, and the other reports where it hangs."""
    row, worst = Row('freeze of one of two processes (--hang_timeout 20)'), 0.
    for _ in range(count):
        log = work / 'freeze.log'
        child = started(command(data, work / 'frozen', 100000, 2, ['--hang_timeout', 20]), log, and_trains=True)
        time.sleep(rng.uniform(0, 5))
        victim, begun = rng.choice(trained_by(child.pid)), time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        status, output = child.wait(), log.read_text()
        worst = max(worst, time.monotonic() - begun)
        row.count(status == 70 and 'no progress for 2' in output, 'status {}: {}'.format(status, output[-1000:]))
    row.note = 'all processes ended within {:.0f} s'.format(worst)
    return row


def damaged_checkpoints(work, rng, count):
    """Truncate a checkpoint or flip a bit at a random place: it is refused, or loads with the same values."""
    row, path, refused = Row('checkpoint truncated or with a flipped bit'), work / 'damaged.pth', 0
    weights = {'w{}'.format(i): torch.randn(100, 10) for i in range(20)}
    pth_file.save(str(path), {'model': weights, 'epoch': 3})
    content = path.read_bytes()
    for i in range(count):
        place = rng.randrange(len(content))
        damaged = bytearray(content[:place] if i % 2 else content)
        if not i % 2:
            damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        row.tried += 1
        try:
            loaded = pth_file.load(str(path))
            if loaded['epoch'] != 3 or not equal((weights, ()), (loaded['model'], ())):
                row.lost.append('corruption at byte {} of {} was not detected'.format(place, len(content)))
        except UserError:
            refused += 1
    row.survived = row.tried - len(row.lost)
    row.note = '{} refused; the others are corrupted where nothing is read'.format(refused)
    return row


def trained_by(launcher):
    """Process ids of the training processes of a launcher."""
    return sorted(map(int, Path('/proc/{0}/task/{0}/children'.format(launcher)).read_text().split()))


def stops(data, work, rng, count):
    """Stop a run at a random moment by each of the signals in turn."""
    row, folder = Row('stop by SIGTERM, SIGINT or SIGUSR1'), work / 'stopped'
    for i in range(count):
        child = started(command(data, folder, 100000), work / 'stop.log', and_trains=True)
        time.sleep(rng.uniform(0, 2))
        child.send_signal([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1][i % 3])
        status, output = child.wait(), (work / 'stop.log').read_text()
        name = output.strip().split('; ')[-1].split(' is saved')[0]
        row.count(status == 75 and 'Traceback' not in output and (folder / name).exists(),
                  'status {}: {}'.format(status, output[-1000:]))
    return row


def fuzz(work, seed, count):
    """Read broken images, and train on them."""
    row, folder = Row('broken image files read'), work / 'fuzz'
    folder.mkdir()
    paths, readable = fuzzed_images.write(folder, count, seed), 0
    for path in paths:
        row.tried += 1
        try:
            readable += read(path)
            row.survived += 1
        except Exception as error:
            row.lost.append('{}: {!r}'.format(path, error))
    row.note = '{} read, {} refused'.format(readable, count - readable)
    if started(command(folder, work / 'fuzz-trained', 2, 1, ['--max_bad_images', count]), work / 'fuzz.log').wait():
        row.count(False, 'training on them failed')
    listed = (work / 'fuzz-trained' / 'bad_images.txt').read_text().count('\n')
    row.note += '; a training on them completed and listed {}'.format(listed)
    return row


def read(path):
    """Whether a file is readable; else it must raise UnreadableImage."""
    try:
        picture = open_image(path)
        return picture.resized_crop(0, 0, picture.height, picture.width, (64, 64)).shape == (64, 64, 3)
    except UnreadableImage:
        return False


def full_disk(work, steps):
    """Save with a disk that fills up at every stage: from no space to barely too little."""
    row, disk = Row('disk full at a stage of a save'), work / 'disk'
    disk.mkdir()
    subprocess.check_call(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(disk)])
    try:
        path, old = str(disk / 'checkpoint-0.pth'), {'model': {'w': torch.zeros(1000)}}
        pth_file.save(path, old)
        state = {'model': {'w{}'.format(i): torch.full((100000,), float(i)) for i in range(10)}}       # 4 MB
        for room in range(0, 4 * 1000 * 1000, 4 * 1000 * 1000 // steps):
            (disk / 'filler').write_bytes(b'x' * (shutil.disk_usage(str(disk)).free - room))
            try:
                pth_file.save(path, state)
                why = 'it seemed to fit in {} bytes'.format(room)
            except OSError as error:
                kept = torch.equal(pth_file.load(path)['model']['w'], old['model']['w'])
                alone = sorted(os.listdir(str(disk))) == ['checkpoint-0.pth', 'filler']
                why = '' if kept and alone else 'the old one is damaged, or a temporary file is left'
                row.note = str(error.strerror)
            (disk / 'filler').unlink()
            row.count(not why, why)
    finally:
        subprocess.check_call(['umount', '-l', str(disk)])
    return row


def table(rows):
    """Markdown table of the rows."""
    cells = [('what', 'tried', 'survived', 'lost', ''), ['---'] * 5]
    cells += [(row.what, row.tried, row.survived, len(row.lost), row.note) for row in rows]
    return '\n'.join('| {} | {} | {} | {} | {} |'.format(*line) for line in cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--short', action='store_true', help='few repetitions')
    parser.add_argument('--seed', type=int, default=0, help='seed of moments and mutations (default: %(default)s)')
    args = parser.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    rng, few = random.Random(args.seed), args.short
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = work / 'images'
        synthetic_dataset.write(str(data), train=64, val=8, seed=0)
        epochs = 5 if few else 40
        rows = [kills(data, work, rng, 2 if few else 50, epochs, 1),
                kills(data, work, rng, 1 if few else 20, epochs, 2),
                restarts(data, work, rng, 1 if few else 6, epochs),
                freezes(data, work, rng, 1 if few else 5),
                stops(data, work, rng, 1 if few else 12),
                damaged_checkpoints(work, rng, 40 if few else 2000),
                fuzz(work, args.seed, 60 if few else 2000),
                full_disk(work, 4 if few else 40)]
    print(table(rows))
    for row in rows:
        for why in row.lost:
            print('LOST: {}: {}'.format(row.what, why))
    sys.exit(any(row.lost for row in rows))


if __name__ == '__main__':
    main()
