#!/usr/bin/env bash
# MAE ViT-B/16 pre-training on 8 devices by the fast recipe, 200 epochs; not measured at this scale.
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  pretrain_fast
devices 8
epochs  200
output  output_pretrain_fast_8p/910A_8p_pretrain_fast.log
launch  "$@"
