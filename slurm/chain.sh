#!/bin/bash
# How a run ends, and what a chain of jobs does with that; job.sh sources it once the
# run folder is there. Files of the run folder:
#   EXIT_CODE  "<exit code> <job>" of the last job that ended for good
#   CHAIN      "<job> <newest checkpoint>", a line for each link as it began

job_key() {
    printf '%s' "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"
    printf '%s\n' "${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
}

record_end() {
    printf '%s %s\n' "$1" "$(job_key)" > "$RUN_DIR/EXIT_CODE.tmp"
    mv "$RUN_DIR/EXIT_CODE.tmp" "$RUN_DIR/EXIT_CODE"
}

end_link() {
    say "link $NEMO_RL_CHAIN_LINK of the chain has nothing to do: $2"
    record_end "$1"
    exit "$1"
}

# Every link but the first asks whether the one before it left something to do. A link
# that SLURM killed wrote no EXIT_CODE; its line in CHAIN is there all the same.
begin_link() {
    local code='' job='' now last
    now=$(cat "$RUN_DIR/PROGRESS" 2>/dev/null || echo the start)
    if [ "$NEMO_RL_CHAIN_LINK" -eq 0 ]; then
        rm -f "$RUN_DIR/CHAIN" "$RUN_DIR/EXIT_CODE"
    else
        read -r code job 2>/dev/null < "$RUN_DIR/EXIT_CODE"
        case $code in
            0)
                [ ! -e "$RUN_DIR/STOPPED" ] || end_link 0 "file STOP ended the run (job $job)"
                end_link 0 "the run is complete (job $job)"
                ;;
            2) end_link 2 "job $job was refused; the reason is above" ;;
        esac
        last=$(tail -n 2 "$RUN_DIR/CHAIN" 2>/dev/null | cut -d ' ' -f 2- | sort -u)
        if [ "$NEMO_RL_CHAIN_LINK" -ge 2 ] && [ "$last" = "$now" ]; then
            end_link "${code:-1}" "the two links before it saved nothing new"
        fi
        say "link $NEMO_RL_CHAIN_LINK of the chain goes on from $now"
    fi
    printf '%s %s\n' "$SLURM_JOB_ID" "$now" >> "$RUN_DIR/CHAIN"
}

# The links that wait. Each waits for the one before it, so one question finds all.
waiting_links() {
    local rows next found='' id=$SLURM_JOB_ID
    rows=$(squeue --noheader --states=PENDING --user="$(id -un)" --format='%A %E')
    while
        next=$(sed -nE "s/^([0-9]+) afterany:$id([^0-9].*)?\$/\1/p" <<< "$rows" | head -n 1)
        [ -n "$next" ]
    do
        found+=${found:+,}$next
        id=$next
    done
    printf '%s\n' "$found"
}

# A link that did not come to train does not count, and what was wrong with its nodes
# holds for the links after it.
leave_link() {
    local exclude links
    was_cut_short || return 0
    sed -i "/^$SLURM_JOB_ID /d" "$RUN_DIR/CHAIN"
    exclude=$(excluded_nodes)
    links=$(waiting_links)
    if [ -n "$exclude" ] && [ -n "$links" ]; then
        say "asking SLURM to leave $exclude out of the next links, $links"
        scontrol update "JobId=$links" "ExcNodeList=$exclude"
    fi
}

[ -z "${NEMO_RL_CHAIN_LINK:-}" ] || begin_link
