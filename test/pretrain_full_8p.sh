#!/usr/bin/env bash
# MAE ViT-B/16 pre-training on 8 devices, 400 epochs (about 60 h; documented loss 0.4107).
# shellcheck source=lib/launch.sh
. "$(dirname "$0")/lib/launch.sh"

recipe  pretrain_base
devices 8
epochs  400
output  output_pretrain_full_8p/910A_8p_pretrain_full.log
launch  "$@"
