#!/usr/bin/env bash
# Throughput of ViT-L/16 fine-tuning on 8 devices: the full recipe, for one epoch (about 14 min).
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  finetune_large
devices 8
epochs  1
output  output_finetune_large_8p/910B_8p_finetune_large.log
launch  "$@"
