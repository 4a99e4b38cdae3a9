#!/usr/bin/env bash
# Throughput of MAE ViT-B/16 pre-training on 8 devices: the full recipe, for one epoch (about 9 min).
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  pretrain_base
devices 8
epochs  1
output  output_pretrain_8p/910A_8p_pretrain.log
launch  "$@"
