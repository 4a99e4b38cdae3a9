#!/usr/bin/env bash
# Throughput of MAE ViT-B/16 pre-training on 1 device: the full recipe, for one epoch (about 1 h).
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  pretrain_base
devices 1
epochs  1
output  output_pretrain_1p/910A_1p_pretrain.log
launch  "$@"
