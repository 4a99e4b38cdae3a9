"""Pre-training recipes compared: python test/bench/compare_recipes.py DATA FOLDER --recipe EPOCHS FLAGS [--recipe ...]

For each recipe and seed: pre-train a nano model, evaluate k-NN, fine-tune. The table shows mean, standard error and
each seed. Choose epochs with equal processor seconds of pre-training. Two processes of one thread run at a time.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def train(script, folder, *flags):
    """Last epoch of log.txt, with the processor seconds of the run."""
    done = folder / 'done.json'
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, ROOT / script, '--output_dir', folder, '--num_workers', 0, '--device', 'cpu', *flags]
        with open(str(folder / 'output.txt'), 'w') as output:
            process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
            _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit('{} failed; see {}'.format(script, output.name))
        last = json.loads((folder / 'log.txt').read_text().splitlines()[-1])
        done.write_text(json.dumps({**last, 'seconds': used.ru_utime + used.ru_stime}))
    return json.loads(done.read_text())


def trial(args, epochs, recipe, seed):
    """(k-NN accuracy, accuracy after fine-tuning, processor seconds of pre-training)."""
    folder = Path(args.folder, '{} {} {}'.format(epochs, recipe, seed))
    shared = ['--data_path', args.data, '--input_size', args.input_size, '--patch_size', args.patch_size,
              '--batch_size', 64, '--crop_min', .6, '--seed', seed]
    pretrained = train('main_pretrain.py', folder / 'pretrain', *shared, '--model', 'mae_vit_nano_patch16',
                       '--epochs', epochs, '--warmup_epochs', int(epochs) / 10, '--lr', 1.5e-3, '--norm_pix_loss',
                       '--save_every', epochs, '--knn_every', epochs, *recipe.split())
    finetuned = train('main_finetune.py', folder / 'finetune', *shared, '--model', 'vit_nano_patch16',
                      '--epochs', args.finetune_epochs, '--warmup_epochs', 1, '--lr', 1e-3, '--layer_decay', .85,
                      '--aa', 'none', '--reprob', 0, '--drop_path', 0, '--save_every', args.finetune_epochs,
                      '--finetune', folder / 'pretrain' / 'checkpoint-{}.pth'.format(int(epochs) - 1))
    return pretrained['knn_acc1'], finetuned['test_acc1'], pretrained['seconds']


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('data', help='class folders')
    parser.add_argument('folder', help='output')
    parser.add_argument('--recipe', nargs=2, action='append', required=True, metavar=('EPOCHS', 'FLAGS'))
    for name, default in (('--input_size', 32), ('--patch_size', 4), ('--finetune_epochs', 5)):
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    os.environ['OMP_NUM_THREADS'] = '1'
    with ThreadPoolExecutor(2) as pool:
        trials = [[pool.submit(trial, args, *recipe, seed) for seed in range(3)] for recipe in args.recipe]
    print('| epochs | flags | k-NN, Acc@1 | fine-tuned, Acc@1 | processor seconds |\n' + '|---' * 5 + '|')
    for recipe, results in zip(args.recipe, trials):
        columns = zip(*(result.result() for result in results))
        print('| {} | `{}` | {} |'.format(*recipe, ' | '.join('{:.2f} ± {:.2f} ({})'.format(
            statistics.mean(column), statistics.stdev(column) / len(column) ** .5,
            ', '.join(map('{:.2f}'.format, column))) for column in columns)))


if __name__ == '__main__':
    main()
