#!/usr/bin/env bash
# Throughput of ViT-B/16 fine-tuning on 8 devices: the full recipe, for one epoch (about 11 min).
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  finetune_base
devices 8
epochs  1
output  output_finetune_8p/910A_8p_finetune.log
launch  "$@"
