# shellcheck shell=bash
# The declarations of a launcher: recipe, devices, nodes, epochs, output; and launch.
# A launcher declares; `launch "$@"` reads the user's parameters, builds the command, runs it and keeps its log.

# First, for a reader that is not bash; sh may be bash without its extensions.
[ -n "${BASH_VERSION:-}" ] || { echo "error: $0: run it with bash: bash $0" >&2 && exit 2; }
set +o posix

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

usage() {
    local needs='' finetune=''
    if [[ $SCRIPT != main_pretrain.py ]]; then
        finetune=$'  --finetune_pth=FILE     pre-trained checkpoint, or its URL (.../name-HASH.pth)\n'
    fi
    if ((${#NEEDS[@]})); then needs=$(printf -- ' --%s=FILE' "${NEEDS[@]}"); fi
    sed -n '2,/^\. /{/^# shellcheck/d; /^#/s/^# \{0,1\}//p}' "$0"
    cat <<EOF

bash test/$(basename "$0") --data_path=FOLDER$needs [flags]

  --data_path=FOLDER      images: train/<class>/ and val/<class>/, the CIFAR-10 or CIFAR-100 python batches, or CSV files
$finetune\
  --resume_pth=FILE       checkpoint to evaluate or to resume from, or its URL
  --nproc=N               processes on this node, instead of $DEVICES
  --nnodes=N              nodes, instead of $NODES (or NNODES in the environment)
  --node_rank=I           index of this node (or NODE_RANK)
  --master_addr=HOST      address of node 0 (or MASTER_ADDR)
  --master_port=PORT      port of node 0 (or MASTER_PORT)
  --max_restarts=N        restart a failed run from its last checkpoint, up to N times
  --stop_timeout=SECONDS  time to save and end after a signal, until processes are killed (300)
  --output_dir=FOLDER     instead of $(dirname "$OUTPUT")
  --config=FILE           YAML file of flags for $SCRIPT, which overrides the recipe
Any other flag goes to $SCRIPT and overrides recipe and file; python $SCRIPT --help lists them.
DRY_RUN=1 prints the command instead of running it. PYTHON=... chooses the interpreter.
EOF
}

# read_parameters "$@": the launcher's own parameters into variables of their names, everything else into PASSED_ON.
# Nodes may also be named in the environment.
read_parameters() {
    data_path='' finetune_pth='' resume_pth='' nproc='' output_dir='' config='' max_restarts='' stop_timeout=''
    nnodes=${NNODES:-$NODES} node_rank=${NODE_RANK:-} master_addr=${MASTER_ADDR:-} master_port=${MASTER_PORT:-}
    PASSED_ON=()
    local name
    while (($#)); do
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --data_path | --finetune_pth | --resume_pth | --nproc | --nnodes | --node_rank | --master_addr | \
                --master_port | --output_dir | --config | --max_restarts | --stop_timeout)
                (($# > 1)) || die "$1: give a value"
                printf -v "${1#--}" '%s' "$2"
                shift
                ;;
            --data_path=* | --finetune_pth=* | --resume_pth=* | --nproc=* | --nnodes=* | --node_rank=* | \
                --master_addr=* | --master_port=* | --output_dir=* | --config=* | --max_restarts=* | --stop_timeout=*)
                name=${1%%=*}
                printf -v "${name#--}" '%s' "${1#*=}"
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
        [[ -n ${!name} ]] || die "--$name=... is required (--help explains)"
    done
    [[ -z $finetune_pth || $SCRIPT != main_pretrain.py ]] || die "--finetune_pth: pre-training takes none"
    for name in nproc nnodes stop_timeout; do
        [[ ${!name:-1} =~ ^[1-9][0-9]{0,8}$ ]] || die "--$name: ${!name} is not a positive number"
    done
    [[ ${master_port:-1} =~ ^[1-9][0-9]{0,4}$ ]] || die "--master_port: $master_port is not a port"
    for name in max_restarts node_rank; do
        [[ ${!name:-0} =~ ^(0|[1-9][0-9]{0,8})$ ]] || die "--$name: ${!name} is not a number"
    done
    as_paths data_path finetune_pth resume_pth output_dir config
    [[ -d $data_path || -f $data_path && $data_path == *.[cC][sS][vV] ]] ||
        die "--data_path: $data_path is not a folder or CSV file"
    for name in ${NEEDS[@]+"${NEEDS[@]}"}; do
        [[ -f ${!name} || -f ${!name}/config.json || ${!name} =~ ^https?:// ]] || die "--$name: ${!name} is not a file"
    done
    if ((nnodes > 1)) && [[ -z $node_rank || -z $master_addr ]]; then
        die "$nnodes nodes: give --node_rank=0 on the first node (1 on the next) and --master_addr=ADDRESS of it"
    fi
    if ((nnodes > 1)) && { [[ ! $node_rank =~ ^[0-9]{1,8}$ ]] || ((10#$node_rank >= nnodes)); }; then
        die "--node_rank: $node_rank is not a number from 0 to $((nnodes - 1))"
    fi
}

# yield_to_config: RECIPE without the flags that the file of --config sets.
yield_to_config() {
    local names word left_out='' kept=()
    [[ -n $config ]] || return 0
    names=$(PYTHONPATH=$ROOT "$PYTHON" -m util.config.parser "$config")
    for word in "${RECIPE[@]}"; do
        if [[ $word == --* ]]; then
            left_out=''
            if grep -qxF -e "${word#--}" <<<"$names"; then left_out=yes; fi
        fi
        if [[ -z $left_out ]]; then kept+=("$word"); fi
    done
    RECIPE=(${kept[@]+"${kept[@]}"} --config "$config")
}

# build_command FOLDER: COMMAND, from the recipe, the declarations and the user's parameters; FOLDER gets its output.
build_command() {
    COMMAND=("$PYTHON")
    if ((nnodes > 1 || ${nproc:-$DEVICES} > 1 || ${max_restarts:-0} > 0 || ${stop_timeout:-0} > 0)); then
        COMMAND+=("$ROOT/util/tools/launch.py")
        if [[ -n $nproc ]]; then COMMAND+=(--nproc "$nproc"); else COMMAND+=(--devices "$DEVICES"); fi
        if ((nnodes > 1)); then COMMAND+=(--nnodes "$nnodes" --node_rank "$node_rank" --master_addr "$master_addr"); fi
        if [[ -n $master_port ]]; then COMMAND+=(--master_port "$master_port"); fi
        if [[ -n $max_restarts ]]; then COMMAND+=(--max_restarts "$max_restarts"); fi
        if [[ -n $stop_timeout ]]; then COMMAND+=(--stop_timeout "$stop_timeout"); fi
    fi
    COMMAND+=("$ROOT/$SCRIPT" --data_path "$data_path" --output_dir "$1" "${RECIPE[@]}")
    if [[ -n $finetune_pth ]]; then COMMAND+=(--finetune "$finetune_pth"); fi
    if [[ -n $resume_pth ]]; then COMMAND+=(--resume "$resume_pth"); fi
    COMMAND+=(${PASSED_ON[@]+"${PASSED_ON[@]}"})
}

# run_logged LOG: run COMMAND with its output on the screen and in LOG; returns its status. Stop signals are forwarded, as
# real-time signals RTMIN+n: to all processes of a job, a signal and its forwarded copy are one (util/errors.py).
run_logged() {
    local log writer child status=0 signalled=yes
    # The log's writer outlives a signal to all processes of the job: it ends with the last line.
    exec {log}> >(trap '' INT TERM HUP USR1 && exec tee -a "$1")
    writer=$!
    MAE_LAUNCHER=$$ "${COMMAND[@]}" >&"$log" 2>&1 {log}>&- &
    child=$!
    exec {log}>&-
    trap 'signalled=yes; kill -RTMIN+15 "$child" 2>/dev/null || true' INT TERM HUP
    trap 'signalled=yes; kill -RTMIN+10 "$child" 2>/dev/null || true' USR1
    while [[ $signalled ]]; do      # a wait that a signal cuts short returns that signal, not the process's status
        signalled='' status=0
        wait "$child" || status=$?
    done
    while kill -0 "$writer" 2>/dev/null; do         # bash before 4.4 cannot wait for it
        wait "$writer" 2>/dev/null || sleep .1
    done
    trap - INT TERM HUP USR1
    if ((status > 160 && status < 193)); then status=75; fi     # the forwarded signal came before Python handles it
    return "$status"
}

launch() {
    "recipe_$RECIPE_NAME"
    read_parameters "$@"
    check_parameters
    local folder=${output_dir:-$ROOT/${OUTPUT%/*}} log=${OUTPUT##*/}
    find_python
    if [[ -n $EPOCHS ]]; then RECIPE+=(--epochs "$EPOCHS"); fi
    yield_to_config
    build_command "$folder"
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "${COMMAND[@]}"
        echo
        return
    fi
    source_npu_environment
    # Nodes may share a disk: each writes a log of its own. The run gives it its name when training is about to start.
    if ((nnodes > 1 && node_rank > 0)); then log=${log%.log}_node$node_rank.log; fi
    log=$folder/$log
    { mkdir -p "$folder" && : >"$log.starting"; } 2>/dev/null || die "--output_dir: $folder cannot be written"
    MAE_LOG_FILE=$log run_logged "$log.starting"
}
