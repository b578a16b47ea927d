#!/bin/bash
# Body of every job. A recipe script sources it after setting RECIPE and, if it has
# any, OVERRIDES; the arguments of the script are further overrides. It chooses the
# run folder, starts one agent per node (python -m nemo_rl.launch.node), passes on
# SLURM's warning before the time limit, and decides whether the job runs again.
# It runs outside the container: scontrol is not inside.

NEMO_RL_ROOT=${NEMO_RL_ROOT:-$SLURM_SUBMIT_DIR}
REQUEUE_CODE=75
JOB_BEGAN=${EPOCHREALTIME/,/.}

say() { printf '%(%F %T)T job %s: %s\n' -1 "$SLURM_JOB_ID" "$*"; }

# Overrides for the log, without the values of secrets (nemo_rl/utils/secrets.py).
shown() {
    local secret='(api_?key|passw(or)?d|secret|credentials?|_token|[.]token)'
    [ "$#" -eq 0 ] || printf '%s ' "$@" | sed -E "s/(${secret}['\"]?[=:] *)[^ ,}]+/\1***/Ig"
}

# Lines KEY=value of launch/<site>.env; what the environment already has wins.
load_site() {
    local file=$NEMO_RL_ROOT/launch/$1.env line key value
    [ -r "$file" ] || { say "no site file $file"; exit 2; }
    while IFS= read -r line || [ -n "$line" ]; do
        [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
        key=${line%%=*}
        value=${line#*=}
        if [ "${value:0:1}" = '"' ]; then value=${value#\"}; value=${value%\"}; fi
        [ -n "${!key+set}" ] || export "$key=$value"
    done < "$file"
}

choose_python() {
    local own=$NEMO_RL_ROOT/.venv/bin/python
    [ -x "$own" ] && [ "$CONTAINER_RUNTIME" = none ] || own=python3
    printf '%s\n' "${NEMO_RL_PYTHON:-$own}"
}

# Bash runs a trap only between commands: a signal ends wait early, so wait again.
wait_for_step() {
    while wait "$STEP_PID" 2>/dev/null; STEP_CODE=$?; kill -0 "$STEP_PID" 2>/dev/null; do
        :
    done
}

# The head is done, but srun may wait for a node that no longer answers. And somebody
# may extend the time limit.
watch_step() {
    local asked=$EPOCHSECONDS
    while kill -0 "$STEP_PID" 2>/dev/null; do
        if [ -e "$ATTEMPT_DIR/exit_code" ]; then
            for pause in 6 1; do sleep "$pause"; kill -TERM "$STEP_PID" 2>/dev/null; done
            sleep 5
            kill -KILL "$STEP_PID" 2>/dev/null
            return
        fi
        if [ "$((EPOCHSECONDS - asked))" -ge "${NEMO_RL_TIME_LIMIT_POLL:-180}" ]; then
            asked=$EPOCHSECONDS
            write_end
        fi
        sleep 1
    done
}

# Why the attempt before this one ended, where SLURM ended it before it could tell.
report_last_attempt() {
    local last=$RUN_DIR/attempts/$SLURM_JOB_ID.$((ATTEMPT - 1)) why
    [ "$ATTEMPT" -gt 0 ] && [ -d "$last" ] || return 0
    why=$(sed -n 's/^  "summary": "\(.*\)",*$/\1/p' "$last/failure.json" 2>/dev/null)
    if [ -n "$why" ]; then
        say "attempt $((ATTEMPT - 1)) failed: $why"
    elif [ ! -s "$last/exit_code" ]; then
        say "SLURM ended attempt $((ATTEMPT - 1)): node failure, preemption or requeue"
    fi
}

cd "$NEMO_RL_ROOT" || exit 2
load_site "${NEMO_RL_SITE:-generic}"
ATTEMPT=${SLURM_RESTART_COUNT:-0}
RUN_DIR=${NEMO_RL_RUN_DIR:-$NEMO_RL_ROOT/results/$SLURM_JOB_NAME/$SLURM_JOB_ID}
ATTEMPT_DIR=$RUN_DIR/attempts/$SLURM_JOB_ID.$ATTEMPT
if ! { mkdir -p "$ATTEMPT_DIR" && chmod 700 "$ATTEMPT_DIR"; }; then
    say "cannot write $RUN_DIR"
    exit 2
fi
say "attempt $ATTEMPT on $SLURM_JOB_NODELIST; log in $RUN_DIR/job.log"
exec >> "$RUN_DIR/job.log" 2>&1
say "attempt $ATTEMPT: $RECIPE $(shown "${OVERRIDES[@]}" "$@")on $SLURM_JOB_NODELIST"
report_last_attempt

# shellcheck source=slurm/time.sh
source "$NEMO_RL_ROOT/slurm/time.sh"
# shellcheck source=slurm/chain.sh
source "$NEMO_RL_ROOT/slurm/chain.sh"
# shellcheck source=slurm/requeue.sh
source "$NEMO_RL_ROOT/slurm/requeue.sh"
# shellcheck source=slurm/container.sh
source "$NEMO_RL_ROOT/slurm/container.sh"
obey_stop
rm -f "$RUN_DIR/STOPPED"
export PYTHONPATH=$NEMO_RL_ROOT${PYTHONPATH:+:$PYTHONPATH}
export NEMO_RL_JOB_BEGAN=$JOB_BEGAN NEMO_RL_STEP_BEGAN=${EPOCHREALTIME/,/.}
read -ra EXTRA <<< "${NEMO_RL_SRUN_ARGS:-}"
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpu-bind=none --kill-on-bad-exit=0 --wait=60 "${EXTRA[@]}" "${CONTAINER_SRUN[@]}" \
    "${CONTAINER_COMMAND[@]}" "$(choose_python)" -m nemo_rl.launch.node \
    --run-dir="$RUN_DIR" --attempt-dir="$ATTEMPT_DIR" --temp-root="${NEMO_RL_TMPDIR:-/tmp}" \
    --start-timeout="${NEMO_RL_START_TIMEOUT:-300}" \
    "$RECIPE" "${OVERRIDES[@]}" "$@" &
STEP_PID=$!
watch_step &
WATCH_PID=$!
wait_for_step
printf '%s\n' "${EPOCHREALTIME/,/.}" > "$ATTEMPT_DIR/closed"
kill "$WATCH_PID" 2>/dev/null
# The head's own word counts: srun returns the worst of all tasks.
finish "$(cat "$ATTEMPT_DIR/exit_code" 2>/dev/null || echo "$STEP_CODE")"
