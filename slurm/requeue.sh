#!/bin/bash
# How a job ends: with an exit code, or in the queue again. Sourced by job.sh.
# shellcheck disable=SC2034,SC2154  # variables of job.sh

# Nodes that failed their checks, beside those left out before; nothing if there are
# none. SLURM takes one list, which replaces the last.
excluded_nodes() {
    local new old
    new=$(cat "$ATTEMPT_DIR/exclude" 2>/dev/null) || return 0
    old=$(scontrol --oneliner show job "$SLURM_JOB_ID" |
        sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
    [ "$old" = "(null)" ] && old=
    printf '%s\n' "${old:+$old,}$new"
}

# Whether this attempt says nothing about progress: nodes failed their checks, or SLURM
# wanted them for another job. A warning near the time limit is not that.
was_cut_short() {
    local end
    [ ! -s "$ATTEMPT_DIR/exclude" ] || return 0
    [ -e "$RUN_DIR/PREEMPT" ] || return 1
    end=$(cat "$NEMO_RL_END_FILE" 2>/dev/null)
    [ "$end" = unlimited ] || [ "$((${end:-0} - EPOCHSECONDS))" -gt 900 ]
}

# An attempt that saved no new checkpoint, twice in a row, would never end.
may_requeue() {
    local before=$RUN_DIR/attempts/$SLURM_JOB_ID.$((ATTEMPT - 1))
    local last=$before/progress older=$RUN_DIR/attempts/$SLURM_JOB_ID.$((ATTEMPT - 2))/progress
    [ ! -e "$RUN_DIR/CANCEL" ] || { say "not requeued: cancelled"; return 1; }
    if [ -n "${NEMO_RL_CHAIN_LINK:-}" ]; then
        say "this link ends; the next one of the chain goes on, if there is one"
        return 1
    fi
    if [ "$((ATTEMPT + 1))" -ge "${NEMO_RL_MAX_ATTEMPTS:-20}" ]; then
        say "not requeued: this was attempt $ATTEMPT and NEMO_RL_MAX_ATTEMPTS is ${NEMO_RL_MAX_ATTEMPTS:-20}"
        return 1
    fi
    if [ -s "$ATTEMPT_DIR/exclude" ] && cmp -s "$before/exclude" "$ATTEMPT_DIR/exclude"; then
        say "not requeued: SLURM gave nodes again that it was asked to leave out"
        return 1
    fi
    ! was_cut_short || return 0
    cp "$RUN_DIR/PROGRESS" "$ATTEMPT_DIR/progress" 2>/dev/null || : > "$ATTEMPT_DIR/progress"
    # The files tell where attempts ended: three alike, or two at the very start.
    if [ -e "$last" ] && cmp -s "$last" "$ATTEMPT_DIR/progress" &&
        { [ ! -s "$last" ] || cmp -s "$older" "$last"; }; then
        say "not requeued: two attempts in a row ended without a new checkpoint"
        return 1
    fi
}

finish() {
    local code=$1 exclude update
    case $code in
        0)
            rm -f "$RUN_DIR/STOP" "$RUN_DIR/SAVE" # Too late for both.
            say "done; results in $RUN_DIR"
            ;;
        2) say "refused (exit code 2): the reason is above" ;;
        "$REQUEUE_CODE") ;;
        *) say "failed with exit code $code; the first error is above, Ray's logs in $ATTEMPT_DIR" ;;
    esac
    if [ -n "$END_BY_SLURM" ] && [ "$code" -ne 0 ]; then
        say "SLURM ended this attempt; last checkpoint: $(cat "$RUN_DIR/PROGRESS" 2>/dev/null || echo none)"
        exit "$code"
    fi
    if [ "$code" -eq "$REQUEUE_CODE" ] && may_requeue; then
        say "requeued: the next attempt goes on from $(cat "$RUN_DIR/PROGRESS" 2>/dev/null || echo the start)"
        exclude=$(excluded_nodes)
        [ -z "$exclude" ] || say "asking SLURM to leave out $exclude"
        trap '' TERM  # SLURM ends this shell while the job goes back into the queue
        if scontrol requeue "$SLURM_JOB_ID"; then
            # A node refuses a job that starts in the second in which it ended there
            # ("Job credential revoked"): it would have failed for good.
            update=("JobId=$SLURM_JOB_ID" StartTime=now+5)
            [ -z "$exclude" ] || update+=("ExcNodeList=$exclude")
            scontrol update "${update[@]}"
            trap - TERM
            sleep 60
        fi
        say "scontrol requeue failed: is requeueing forbidden here?"
    fi
    [ -z "${NEMO_RL_CHAIN_LINK:-}" ] || leave_link
    record_end "$code"
    exit "$code"
}
