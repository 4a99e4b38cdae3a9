#!/usr/bin/env bash
# Evaluation of a fine-tuned ViT-B/16 on 8 devices (about 3 min).
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  eval_base
devices 8
output  output_finetune_eval_8p/910A_8p_finetune_eval.log
launch  "$@"
