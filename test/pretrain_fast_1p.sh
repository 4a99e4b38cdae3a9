#!/usr/bin/env bash
# MAE ViT-B/16 pre-training on 1 device by the fast recipe, 200 epochs; not measured at this scale.
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  pretrain_fast
devices 1
epochs  200
output  output_pretrain_fast_1p/910A_1p_pretrain_fast.log
launch  "$@"
