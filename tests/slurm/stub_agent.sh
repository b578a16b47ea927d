#!/bin/bash
# In the place of the job's Python: an agent that "trains" five steps per job, one every
# 0.2 s, and saves each. STUB_CODE=2 is refused, 1 fails; STUB_STEPS are needed in all;
# node STUB_BAD fails its checks.
for word; do
    case $word in
        --run-dir=*) run=${word#*=} ;;
        --attempt-dir=*) attempt=${word#*=} ;;
    esac
done
[ "$SLURM_NODEID" = 0 ] || exit 0
end() { printf %s "$1" > "$attempt/exit_code"; exit "$1"; }
echo "agent of $SLURM_JOB_ID: $*"
[ -z "${STUB_CODE:-}" ] || end "$STUB_CODE"
if [ "$SLURMD_NODENAME" = "${STUB_BAD:-}" ]; then
    echo "$STUB_BAD" > "$attempt/exclude"
    end 75
fi
mkdir -p "$run/logs"
step=$(wc -l 2>/dev/null < "$run/logs/metrics.jsonl" || echo 0)
for _ in 1 2 3 4 5; do
    step=$((step + 1))
    sleep 0.2
    echo "{\"step\": $step, \"train/loss\": 0.$step}" >> "$run/logs/metrics.jsonl"
    echo "$run/checkpoints/step_$step" > "$run/PROGRESS"
    echo "trained step $step"
    [ "$step" -lt "${STUB_STEPS:-5}" ] || end 0
done
end 75
