#!/usr/bin/env bash
# Throughput of ViT-B/16 fine-tuning on 1 device: the full recipe, for one epoch (about 1 h 15 min).
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  finetune_base
devices 1
epochs  1
output  output_finetune_1p/910A_1p_finetune.log
launch  "$@"
