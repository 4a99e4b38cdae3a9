#!/usr/bin/env bash
# CIFAR-10 on one device, in one command: pre-train a ViT-Tiny with patches of 2x2 pixels, without labels; fine-tune it;
# train the same network from scratch with the same budget; compare both.
#
#   bash test/cifar10_1p.sh --data_path=FOLDER [flags]
#
#   --data_path=FOLDER     the CIFAR-10 python batches, or images in train/<class>/ and val/<class>/ (or test/<class>/)
#   --output_dir=FOLDER    instead of output_cifar10_1p in the repository
#   --pretrain_epochs=N    epochs of pre-training (400)
#   --finetune_epochs=N    epochs of fine-tuning, and of training from scratch (100)
#   --model=NAME           a model of main_finetune.py (vit_tiny_patch16); pre-training takes mae_NAME
#   --seed=N               seed of everything that is random (0)
#   --images=N             train on N images and evaluate on N / 5, in batches of 32: where 50,000 would take too long
#   --fast                 pre-train by the fast recipe
#   --quick                one epoch on 120 images: tries the machine, learns nothing
# Any other flag goes to all stages, and overrides the recipe: --device=cpu, --num_workers=4, --batch_size=256.
# After an interruption, repeat the command: it resumes. DRY_RUN=1 prints the commands of the stages.
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"
source "$ROOT/test/lib/stages.sh"

data_path='' output_dir=$ROOT/output_cifar10_1p pretrain_epochs=400 finetune_epochs=100 model=vit_tiny_patch16
seed=0 images='' fast=() passed_on=()

# read_flags "$@": the flags above into variables of their names, all others into passed_on.
read_flags() {
    local name
    while (($#)); do
        case $1 in
            --help | -h) sed -n '2,/^#$/s/^# \{0,1\}//p; /^#   /s/^# //p; /^# Any/,/^# After/s/^# //p' "$0" && exit 0 ;;
            --fast) fast=("${FAST_RECIPE[@]}") ;;
            --quick) images=120 pretrain_epochs=1 finetune_epochs=1 ;;
            --data_path | --output_dir | --pretrain_epochs | --finetune_epochs | --model | --seed | --images)
                (($# > 1)) || die "$1: give a value"
                printf -v "${1#--}" '%s' "$2"
                shift
                ;;
            --data_path=* | --output_dir=* | --pretrain_epochs=* | --finetune_epochs=* | --model=* | --seed=* | \
                --images=*)
                name=${1%%=*}
                printf -v "${name#--}" '%s' "${1#*=}"
                ;;
            --epochs | --epochs=*) die "--epochs: give --pretrain_epochs and --finetune_epochs" ;;
            --config | --config=*) die "--config: one file does not fit all stages; give flags" ;;
            --resume | --resume=*) die "--resume: omit it; the same command resumes" ;;
            *) passed_on+=("$1") ;;
        esac
        shift
    done
}

check_flags() {
    local name
    [[ -n $data_path ]] || die "--data_path=... is required (--help explains)"
    as_paths data_path output_dir
    [[ -d $data_path ]] || die "--data_path: $data_path is not a folder"
    for name in pretrain_epochs finetune_epochs images; do
        [[ ${!name:-1} =~ ^[1-9][0-9]{0,8}$ ]] || die "--$name: ${!name} is not a positive number"
    done
    [[ $seed =~ ^[0-9]{1,9}$ ]] || die "--seed: $seed is not a number"
}

# write_recipe: what the stages share, and PRETRAIN, FINETUNE and SCRATCH, the flags of each.
write_recipe() {
    local data=$data_path batches=(1024 512) shared training
    if [[ -n $images ]]; then data=$output_dir/images batches=(32 32); fi
    shared=(--data_path "$data" --input_size 32 --patch_size 2 --seed "$seed" --amp)
    # Pixels as they are: normalised by its own mean and deviation, a patch of 2x2 has little left to predict.
    PRETRAIN=("${shared[@]}" --model "mae_$model" --epochs "$pretrain_epochs" --batch_size "${batches[0]}" --lr 1.5e-3
        --warmup_epochs "$(((pretrain_epochs + 19) / 20))" ${fast[@]+"${fast[@]}"} ${passed_on[@]+"${passed_on[@]}"})
    # Milder than for ImageNet: larger crops, no erasing, little stochastic depth, mixing in 4 of 5 batches.
    training=("${shared[@]}" --model "$model" --epochs "$finetune_epochs" --batch_size "${batches[1]}"
        --warmup_epochs "$(((finetune_epochs + 19) / 20))" --crop_min 0.5 --reprob 0 --drop_path 0.05
        --mixup 0.8 --cutmix 1.0 --mixup_prob 0.8 --save_every 20)
    FINETUNE=("${training[@]}" --lr 1.5e-3 --layer_decay 0.8 ${passed_on[@]+"${passed_on[@]}"})
    SCRATCH=("${training[@]}" --lr 1e-3 --layer_decay 1 ${passed_on[@]+"${passed_on[@]}"})
}

# check_all_stages: now, what a stage would find hours later: a flag that one of the scripts does not take, missing
# images, classes that differ.
check_all_stages() {
    "$PYTHON" - "$data_path" "${PRETRAIN[@]}" -- "${FINETUNE[@]}" <<'PYTHON'
import sys
from util.config.train_flags import parse_finetune, parse_pretrain
from util.errors import run

def check():
    from util.data.datasets import labelled_set
    from util.log import set_up
    set_up(is_main=True)
    labelled_set(sys.argv[1], 'val', classes=labelled_set(sys.argv[1], 'train').classes)

cut = sys.argv.index('--')
for parse, flags in ((parse_pretrain, sys.argv[2:cut]), (parse_finetune, sys.argv[cut + 1:])):
    parse(['--data_path', sys.argv[1]] + flags[2:])     # a subset is not there yet
run(check)
PYTHON
}

# open_output: the folder of this run, and of no other.
open_output() {
    local recipe
    recipe="--data_path=$(cd "$data_path" && pwd) --pretrain_epochs=$pretrain_epochs --finetune_epochs=$finetune_epochs"
    recipe+=" --model=$model --seed=$seed --images=${images:-all}${fast[0]:+ --fast}"
    { mkdir -p "$output_dir" && : >>"$log"; } 2>/dev/null || die "--output_dir: $output_dir cannot be written"
    if [[ ! -e $output_dir/recipe.txt ]]; then
        printf '%s\n' "$recipe" >"$output_dir/recipe.txt"
    elif [[ $(<"$output_dir/recipe.txt") != "$recipe" ]]; then
        die "--output_dir: $output_dir holds a run with $(<"$output_dir/recipe.txt"); give another folder"
    fi
}

# stage_of NAME RESULT COMMAND...: run the command, with its output in the log too, unless an earlier start has left all
# files of RESULT (names in output_dir/NAME).
stage_of() {
    local name=$1 file status=0 missing=
    for file in $2; do [[ -e $output_dir/$file ]] || missing=yes; done
    shift 2
    COMMAND=("$PYTHON" "$@")
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "${COMMAND[@]}"
        echo
        return
    fi
    if [[ -z $missing ]]; then
        echo "already complete"
        return
    fi
    run_logged "$log" || status=$?
    if ((status)); then
        echo "$name failed with status $status; repeat the command to resume" | tee -a "$log" >&2
        exit "$status"
    fi
}

heading() { if [[ -z ${DRY_RUN:-} ]]; then stage "$1" | tee -a "$log"; fi; }

read_flags "$@"
check_flags
write_recipe
find_python
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
log=$output_dir/cifar10_1p.log
last=checkpoint-$((finetune_epochs - 1)).pth checkpoint=$output_dir/pretrain/checkpoint-$((pretrain_epochs - 1)).pth
if [[ -z ${DRY_RUN:-} ]]; then
    check_all_stages
    source_npu_environment
    open_output
    if [[ -n $images ]]; then
        "$PYTHON" "$ROOT/test/lib/subset.py" "$data_path" "$output_dir/images" "$images" $((images / 5))
    fi
fi
SECONDS=0

heading "1/3 pre-training a masked autoencoder, without labels"
stage_of pretrain "pretrain/summary.json pretrain/${checkpoint##*/}" "$ROOT/main_pretrain.py" "${PRETRAIN[@]}" \
    --output_dir "$output_dir/pretrain" --resume auto
heading "2/3 fine-tuning from it"
stage_of finetune "finetune/summary.json finetune/$last" "$ROOT/main_finetune.py" "${FINETUNE[@]}" \
    --finetune "$checkpoint" --output_dir "$output_dir/finetune" --resume auto
heading "3/3 training the same network from scratch, with the same budget"
stage_of scratch "scratch/summary.json scratch/$last" "$ROOT/main_finetune.py" "${SCRATCH[@]}" \
    --output_dir "$output_dir/scratch" --resume auto
if [[ -n ${DRY_RUN:-} ]]; then exit; fi

heading "done"
compare_runs "$output_dir" | tee -a "$log"
