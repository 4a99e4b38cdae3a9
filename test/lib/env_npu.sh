# shellcheck shell=bash
# The Ascend environment: CANN's own set_env.sh, and the variables that a run on NPUs wants.

# source_npu_environment: make CANN's libraries findable. Does nothing on a machine without it, and leaves alone what
# the user has set.
source_npu_environment() {
    local info=/etc/Ascend/ascend_cann_install.info root=/usr/local/Ascend kind
    if [[ -r $info ]]; then root=$(sed -n 's/^Install_Path=//p' "$info" | head -n 1); fi
    for kind in ascend-toolkit nnae; do
        if [[ -r $root/$kind/set_env.sh ]]; then
            set +eu     # CANN's script reads variables that may be unset
            # shellcheck disable=SC1090
            source "$root/$kind/set_env.sh"
            set -eu
            break
        fi
    done
    if [[ -e /dev/davinci_manager ]]; then
        export HCCL_WHITELIST_DISABLE=${HCCL_WHITELIST_DISABLE:-1}
        export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1200}
        export TASK_QUEUE_ENABLE=${TASK_QUEUE_ENABLE:-1}
        export COMBINED_ENABLE=${COMBINED_ENABLE:-1}
        export ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL:-3}
        export ASCEND_SLOG_PRINT_TO_STDOUT=${ASCEND_SLOG_PRINT_TO_STDOUT:-0}
    fi
}
