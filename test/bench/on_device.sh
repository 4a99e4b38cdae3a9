#!/usr/bin/env bash
# What only an accelerator can tell, in nine minutes on a data center GPU or NPU with 16 cores:
#
#   bash test/bench/on_device.sh [--output_dir=FOLDER] [--data_path=FOLDER] [--cifar10=FOLDER] [--each] [--small | --quick]
#
#   1. correctness: the device against the CPU, bf16 against fp32, resumed, compiled and distributed runs against plain
#   2. step: images/s, share of the peak and memory of ViT-B and ViT-L against the published implementations' way
#   3. loader: images/s from JPEG files to the device by number of workers; the data wait of a real run
#   4. lesson: pre-training, fine-tuning and training from scratch; accuracy against seconds
#
#   --output_dir=FOLDER    for on_device-<time>.json and .md, which grow as it goes (test/bench/results)
#   --data_path=FOLDER     JPEG files for part 3, instead of drawn ones
#   --cifar10=FOLDER       the CIFAR-10 python batches for part 4, instead of drawn images
#   --each                 in part 2 each optimization alone: two and a half minutes more
#   --small                small models and few workers, for a CPU
#   --quick                the least of everything: tries the machine, measures nothing
# A part that takes too long is cut off; its results so far are kept. The status is 1 if a check failed or a part is not
# complete; missed targets do not count.
# shellcheck source=../lib/python.sh
. "$(dirname "$0")/../lib/python.sh"
set -euo pipefail
source "$ROOT/test/lib/env_npu.sh"

output=$ROOT/test/bench/results flags=() more=0 times=1
for word in "$@"; do
    case $word in
        --output_dir=*) output=${word#*=} ;;
        --each) flags+=("$word") more=150 ;;
        --small | --quick) flags+=("$word") times=9 ;;
        --data_path=* | --cifar10=*)
            folder=${word#*=} && as_paths folder && flags+=("${word%%=*}=$folder")
            [[ -d $folder ]] || die "${word%%=*}: $folder is not a folder"
            ;;
        --help | -h) sed -n '2,/^# shellcheck/{/^# shellcheck/d; s/^# \{0,1\}//p}' "$0" && exit 0 ;;
        *) die "unknown argument $word (see --help)" ;;
    esac
done
as_paths output
mkdir -p "$output" 2>/dev/null && [[ -w $output ]] || die "--output_dir: $output cannot be written"
find_python
source_npu_environment
work=$(mktemp -d) results=$output/on_device-$(date +%Y%m%d-%H%M%S) status=0
trap 'kill "${running:-}" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
for part in correctness:70 step:$((240 + more)) loader:100 lesson:120; do
    limit=$((${part#*:} * times)) part=${part%:*}
    printf '\n=== %s, at most %s s\n' "$part" "$limit"
    timeout -k 3 "$limit" "$PYTHON" "$ROOT/test/bench/on_device.py" "$part" --results "$results" --work "$work" \
        ${flags[@]+"${flags[@]}"} &
    running=$!
    wait "$running" || status=1
done
running=''
printf '\nresults: %s.json and .md\n' "$results"
exit "$status"
