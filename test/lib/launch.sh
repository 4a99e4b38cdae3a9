# shellcheck shell=bash
# The words that a launcher is written in: recipe, devices, nodes, epochs, output, launch.
# A launcher declares; `launch "$@"` reads the user's parameters, builds the command, runs it and keeps its log.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
DEVICES=1 NODES=1 EPOCHS='' RECIPE_NAME='' OUTPUT=''
SCRIPT='' NEEDS=() RECIPE=()

source "$ROOT/test/lib/recipes.sh"
source "$ROOT/test/lib/python.sh"
source "$ROOT/test/lib/env_npu.sh"

recipe() { RECIPE_NAME=$1; }    # one of test/lib/recipes.sh
devices() { DEVICES=$1; }       # on each node
nodes() { NODES=$1; }
epochs() { EPOCHS=$1; }
output() { OUTPUT=$1; }         # folder/log, from the repository's root

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

usage() {
    local needs=''
    if ((${#NEEDS[@]})); then needs=$(printf -- ' --%s=FILE' "${NEEDS[@]}"); fi
    sed -n '2,/^source/{/^# shellcheck/d; /^#/s/^# \{0,1\}//p}' "$0"
    cat <<EOF

bash test/$(basename "$0") --data_path=FOLDER$needs [flags]

  --data_path=FOLDER      images: train/<class>/ and val/<class>/, or the CIFAR-10 python batches
  --finetune_pth=FILE     pre-trained checkpoint (fine-tuning)
  --resume_pth=FILE       checkpoint to evaluate (evaluation)
  --nproc=N               processes on this node, instead of $DEVICES
  --nnodes=N              nodes, instead of $NODES (or NNODES in the environment)
  --node_rank=I           index of this node (or NODE_RANK)
  --master_addr=HOST      address of node 0 (or MASTER_ADDR)
  --master_port=PORT      port of node 0 (or MASTER_PORT)
  --output_dir=FOLDER     instead of $(dirname "$OUTPUT")
Any other flag goes to $SCRIPT and overrides the recipe; python $SCRIPT --help lists them.
DRY_RUN=1 prints the command instead of running it. PYTHON=... chooses the interpreter.
EOF
}

# read_parameters "$@": the launcher's own parameters into PARAMETER[name], everything else into PASSED_ON.
read_parameters() {
    declare -gA PARAMETER=()
    PASSED_ON=()
    local name value
    while (($#)); do
        case $1 in
            --help | -h) usage && exit 0 ;;
            --data_path | --finetune_pth | --resume_pth | --nproc | --nnodes | --node_rank | --master_addr | \
                --master_port | --output_dir)
                (($# > 1)) || die "$1: give a value"
                name=${1#--} value=$2
                shift
                PARAMETER[$name]=$value
                ;;
            --data_path=* | --finetune_pth=* | --resume_pth=* | --nproc=* | --nnodes=* | --node_rank=* | \
                --master_addr=* | --master_port=* | --output_dir=*)
                name=${1%%=*} value=${1#*=}
                PARAMETER[${name#--}]=$value
                ;;
            *) PASSED_ON+=("$1") ;;
        esac
        shift
    done
}

# check_parameters: what the recipe needs is there, and files exist.
check_parameters() {
    local name
    for name in data_path ${NEEDS[@]+"${NEEDS[@]}"}; do
        [[ -n ${PARAMETER[$name]:-} ]] || die "--$name=... is required (--help explains)"
    done
    for name in nproc nnodes; do
        [[ ${PARAMETER[$name]:-1} =~ ^[1-9][0-9]*$ ]] || die "--$name: ${PARAMETER[$name]} is not a positive number"
    done
    [[ -d ${PARAMETER[data_path]} ]] || die "--data_path: ${PARAMETER[data_path]} is not a folder"
    for name in ${NEEDS[@]+"${NEEDS[@]}"}; do
        [[ -f ${PARAMETER[$name]} ]] || die "--$name: ${PARAMETER[$name]} is not a file"
    done
}

# build_command LOG_FOLDER: COMMAND, from the recipe, the declarations and the user's parameters.
build_command() {
    local nnodes=${PARAMETER[nnodes]:-${NNODES:-$NODES}} nproc=${PARAMETER[nproc]:-}
    [[ $nnodes =~ ^[1-9][0-9]*$ ]] || die "NNODES: $nnodes is not a positive number"
    NODE_RANK=${PARAMETER[node_rank]:-${NODE_RANK:-}}
    local addr=${PARAMETER[master_addr]:-${MASTER_ADDR:-}} port=${PARAMETER[master_port]:-${MASTER_PORT:-}}
    COMMAND=("$PYTHON")
    if ((nnodes > 1)); then
        [[ -n $NODE_RANK && -n $addr ]] ||
            die "$nnodes nodes: give --node_rank=0 on the first node (1 on the next) and --master_addr=ADDRESS of it"
    fi
    if ((nnodes > 1 || ${nproc:-$DEVICES} > 1)); then
        COMMAND+=("$ROOT/util/launch.py")
        if [[ -n $nproc ]]; then COMMAND+=(--nproc "$nproc"); else COMMAND+=(--devices "$DEVICES"); fi
        if ((nnodes > 1)); then COMMAND+=(--nnodes "$nnodes" --node_rank "$NODE_RANK" --master_addr "$addr"); fi
        if [[ -n $port ]]; then COMMAND+=(--master_port "$port"); fi
    fi
    COMMAND+=("$ROOT/$SCRIPT" --data_path "${PARAMETER[data_path]}" --output_dir "$1" "${RECIPE[@]}")
    if [[ -n $EPOCHS ]]; then COMMAND+=(--epochs "$EPOCHS"); fi
    if [[ -n ${PARAMETER[finetune_pth]:-} ]]; then COMMAND+=(--finetune "${PARAMETER[finetune_pth]}"); fi
    if [[ -n ${PARAMETER[resume_pth]:-} ]]; then COMMAND+=(--resume "${PARAMETER[resume_pth]}"); fi
    COMMAND+=(${PASSED_ON[@]+"${PASSED_ON[@]}"})
}

# run_logged LOG: run COMMAND with its output on the screen and in LOG; returns its status. A signal to the launcher
# ends the command first, and every process that it started.
run_logged() {
    local pipe status child writer
    pipe=$(mktemp -u "${TMPDIR:-/tmp}/launch.XXXXXX")
    mkfifo -m 600 "$pipe"
    tee -a "$1" <"$pipe" &
    writer=$!
    "${COMMAND[@]}" >"$pipe" 2>&1 &
    child=$!
    trap 'kill -TERM "$child" 2>/dev/null || true' INT TERM HUP
    while true; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    trap - INT TERM HUP
    wait "$writer" || true
    rm -f "$pipe"
    return "$status"
}

launch() {
    "recipe_$RECIPE_NAME"
    read_parameters "$@"
    check_parameters
    local folder="$ROOT/${OUTPUT%/*}" log
    if [[ -n ${PARAMETER[output_dir]:-} ]]; then folder=${PARAMETER[output_dir]}; fi
    find_python
    build_command "$folder"
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "${COMMAND[@]}"
        echo
        return
    fi
    # One log a node, so that nodes which share a disk do not write into each other's lines.
    log=${OUTPUT##*/}
    if ((${NODE_RANK:-0} > 0)); then
        log=${log%.log}_node$NODE_RANK.log
        mkdir -p "$folder"
    else
        PYTHONPATH=$ROOT "$PYTHON" -m util.output_dir "$folder" ${PASSED_ON[@]+"${PASSED_ON[@]}"}
    fi
    source_npu_environment
    run_logged "$folder/$log"
}
