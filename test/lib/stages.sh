# shellcheck shell=bash
# What the scripts share that train in stages: headings with the time, and the table that compares two runs.

# stage TITLE: a heading, with the time since SECONDS was 0.
stage() { printf '\n=== %s (%s since the start)\n' "$1" "$(minutes "$SECONDS")"; }

# minutes SECONDS: as 12:05.
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# compare_runs FOLDER: accuracy and loss of FOLDER/finetune and of FOLDER/scratch, from their eval.json.
compare_runs() {
    "$PYTHON" - "$1" <<'PYTHON'
import json
import sys

def accuracy(run):
    with open('{}/{}/eval.json'.format(sys.argv[1], run), encoding='utf-8') as file:
        return json.load(file)

pretrained, scratch = accuracy('finetune'), accuracy('scratch')
print('                    Acc@1   loss    ({} validation images)'.format(scratch['images']))
print('pre-trained (MAE)   {acc1:5.2f}   {loss:.3f}'.format(**pretrained))
print('from scratch        {acc1:5.2f}   {loss:.3f}'.format(**scratch))
print('pre-training gave  {:+.2f} points'.format(pretrained['acc1'] - scratch['acc1']))
PYTHON
}
