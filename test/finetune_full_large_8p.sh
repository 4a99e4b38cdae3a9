#!/usr/bin/env bash
# ViT-L/16 fine-tuning on 8 devices, 50 epochs (about 12 h; documented Acc@1 83.86).
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  finetune_large
devices 8
epochs  50
output  output_finetune_full_large_8p/910B_8p_finetune_full_large.log
launch  "$@"
