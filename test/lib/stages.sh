# shellcheck shell=bash
# What the scripts share that train in stages: headings with the time, and the table that compares two runs.

# stage TITLE: a heading, with the time since SECONDS was 0.
stage() { printf '\n=== %s (%s since the start)\n' "$1" "$(minutes "$SECONDS")"; }

# minutes SECONDS: as 12:05.
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# compare_runs FOLDER: validation accuracy and loss of FOLDER/finetune and of FOLDER/scratch after their last epoch.
compare_runs() {
    "$PYTHON" - "$1" <<'PYTHON'
import json
import sys
from pathlib import Path

logs = [Path(sys.argv[1], run, 'log.txt').read_text(encoding='utf-8') for run in ('finetune', 'scratch')]
pretrained, scratch = (json.loads(log.splitlines()[-1]) for log in logs)
print('                    Acc@1   loss    (validation images)')
print('pre-trained (MAE)   {test_acc1:5.2f}   {test_loss:.3f}'.format(**pretrained))
print('from scratch        {test_acc1:5.2f}   {test_loss:.3f}'.format(**scratch))
print('pre-training gave  {:+.2f} points'.format(pretrained['test_acc1'] - scratch['test_acc1']))
PYTHON
}
