#!/usr/bin/env bash
# See it work in minutes, on any machine: draw a dataset, pre-train, fine-tune, compare with training from scratch.
#
#   bash test/demo.sh [--output_dir=FOLDER] [--seed=N] [--quick]
#
# --quick runs every step on a few images, to try the machine rather than to learn anything.
# shellcheck source=lib/python.sh
. "$(dirname "$0")/lib/python.sh"
set -euo pipefail
source "$ROOT/test/lib/env_npu.sh"
source "$ROOT/test/lib/stages.sh"

output=$ROOT/demo_output seed=0 train=4000 val=800 pretrain_epochs=14 finetune_epochs=3 needs='4 minutes'
while (($#)); do
    case $1 in
        --output_dir=*) output=${1#*=} ;;
        --seed=*) seed=${1#*=} ;;
        --quick) train=128 val=64 pretrain_epochs=1 finetune_epochs=1 needs='a minute' ;;
        --help | -h) sed -n '2,/^# shellcheck/{/^# shellcheck/d; s/^# \{0,1\}//p}' "$0" && exit 0 ;;
        *) die "unknown argument $1 (see --help)" ;;
    esac
    shift
done
as_paths output
[[ $seed =~ ^[0-9]{1,9}$ ]] || die "--seed: $seed is not a number"

echo "demo: pre-training a small MAE on drawn images, fine-tuning it, training the same network from scratch to compare;"
echo "about $needs on 2 quiet cores, a few more where a Python environment is made first; results in $output"
make_environment '' 'torch torchvision timm PIL simplejpeg numpy tensorboard yaml tqdm filelock safetensors'
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
source_npu_environment
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + 1) / 2))}      # two runs train side by side
log=$output/demo.log
if [[ -e $log ]]; then      # of an earlier demo
    earlier=$output/earlier.$(date -r "$log" +%Y%m%d-%H%M%S)
    mkdir "$earlier"
    for name in images pretrain finetune scratch scratch.log reconstructions.png demo.log; do
        if [[ -e $output/$name ]]; then mv "$output/$name" "$earlier"; fi
    done
    echo "earlier results kept in $earlier"
fi
{ mkdir -p "$output" && : >"$log"; } 2>/dev/null || die "--output_dir: $output cannot be written"

images=$output/images
size=(--input_size 48 --patch_size 8)
common=(--data_path "$images" "${size[@]}" --num_workers 1 --seed "$seed")
budget=(--model vit_nano_patch16 --epochs "$finetune_epochs" --warmup_epochs 1 --batch_size 32 --aa none --reprob 0
    --drop_path 0)

stage "1/4 drawing $train training and $val validation images of 8 classes"
"$PYTHON" "$ROOT/test/lib/synthetic_dataset.py" "$images" --train "$train" --val "$val" --seed "$seed"

stage "2/4 pre-training a masked autoencoder, without labels"
"$PYTHON" "$ROOT/main_pretrain.py" "${common[@]}" --output_dir "$output/pretrain" --model mae_vit_nano_patch16 \
    --epochs "$pretrain_epochs" --warmup_epochs 1 --batch_size 32 --lr 2e-3 --crop_min 0.6

stage "3/4 fine-tuning from it; training the same network from scratch beside it, with the same budget"
checkpoint=$output/pretrain/checkpoint-$((pretrain_epochs - 1)).pth
# From scratch a higher rate, equal for all layers, does best.
"$PYTHON" "$ROOT/main_finetune.py" "${common[@]}" --output_dir "$output/scratch" "${budget[@]}" --lr 2e-3 \
    --layer_decay 1 >"$output/scratch.log" 2>&1 &
trap 'kill $! 2>/dev/null || true' EXIT
"$PYTHON" "$ROOT/main_finetune.py" "${common[@]}" --output_dir "$output/finetune" "${budget[@]}" \
    --finetune "$checkpoint" --lr 1e-3 --layer_decay 0.85
wait $! || { tail -n 20 "$output/scratch.log" >&2 && exit 1; }
trap - EXIT

stage "4/4 looking at reconstructions of validation images"
"$PYTHON" -m util.tools.visualize --resume "$checkpoint" --output "$output/reconstructions.png" "$images/val"

stage "done"
compare_runs "$output" | tee "$log"
cat <<EOF

table             $log
images            $images
reconstructions   $output/reconstructions.png
pre-training      $output/pretrain   (report.html, log.txt, checkpoints, TensorBoard)
fine-tuning       $output/finetune
from scratch      $output/scratch
time              $(minutes "$SECONDS") (minutes)
EOF
