#!/bin/bash
# When the job ends, and who asks for it earlier: SLURM by a signal, a person by a file of
# the run folder. job.sh sources it once the attempt's folder is there.
#   PREEMPT  save and go back into the queue
#   SAVE     save and go on
#   STOP     save, export and end for good; called STOPPED once it was obeyed
#   CANCEL   do not requeue; made by nemo-rl cancel

END_BY_SLURM=

# The second since 1970 in which the job ends, "unlimited", or nothing where SLURM does
# not say. squeue shows every task of an array; %A is this one's number.
ask_end() {
    local when
    when=$(SLURM_TIME_FORMAT=standard timeout 30 squeue --noheader \
        --jobs="$SLURM_JOB_ID" --format='%A %e' 2>/dev/null | sed -n "s/^$SLURM_JOB_ID //p")
    case $when in
        NONE) echo unlimited ;;
        [0-9]*-*T*) date --date="$when" +%s ;;
    esac
}

# The trainer reads the file before every step, so that an extended limit counts.
write_end() {
    local end before
    end=${1:-$(ask_end)}
    before=$(cat "$NEMO_RL_END_FILE" 2>/dev/null)
    [ -n "$end" ] && [ "$end" != "$before" ] || return 0
    [ -z "$before" ] || say "the time limit was changed"
    printf '%s\n' "$end" > "$NEMO_RL_END_FILE.tmp"
    mv "$NEMO_RL_END_FILE.tmp" "$NEMO_RL_END_FILE"
}

# SLURM's warning. The head's agent finds the file and tells the trainer to save. A
# signal through srun would reach every process of the step, Ray's too.
# shellcheck disable=SC2329  # called by trap
on_usr2() {
    say "USR2: time is nearly up or the job is preempted; asking the trainer to save"
    touch "$RUN_DIR/PREEMPT"
}

# scancel, or the end of a preemption's grace: whether the job runs again is no longer
# ours to say. SLURM kills what has not ended KillWait seconds later.
# shellcheck disable=SC2329  # called by trap
on_term() {
    say "TERM: SLURM ends this attempt"
    # shellcheck disable=SC2034  # read by requeue.sh
    END_BY_SLURM=1
}

# Asked to end while nobody trained, in the queue or between two links.
obey_stop() {
    [ -e "$RUN_DIR/STOP" ] || return 0
    mv "$RUN_DIR/STOP" "$RUN_DIR/STOPPED"
    say "file STOP: nothing was started; it is removed, submit again to go on"
    record_end 0
    exit 0
}

trap on_usr2 USR2
trap on_term TERM
rm -f "$RUN_DIR/PREEMPT" "$RUN_DIR/CANCEL" "$RUN_DIR/SAVE"
export NEMO_RL_END_FILE=$ATTEMPT_DIR/end
write_end "${SLURM_JOB_END_TIME:-}"
