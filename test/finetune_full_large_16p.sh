#!/usr/bin/env bash
# ViT-L/16 fine-tuning on 2 nodes of 8 devices, 50 epochs (about 6 h; documented Acc@1 85.97).
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  finetune_large
nodes   2
devices 8
epochs  50
output  output_finetune_full_large_16p/910B_16p_finetune_full_large.log
launch  "$@"
