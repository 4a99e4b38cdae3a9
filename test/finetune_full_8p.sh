#!/usr/bin/env bash
# ViT-B/16 fine-tuning on 8 devices, 100 epochs (about 18 h; documented Acc@1 83.34).
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  finetune_base
devices 8
epochs  100
output  output_finetune_full_8p/910A_8p_finetune_full.log
launch  "$@"
