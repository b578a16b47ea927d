#!/bin/bash
# GRPO, Llama-3.1-8B-Instruct on OpenMathInstruct-2. 2 nodes x 8 GPUs, tp4 pp2.
# Written by python -m nemo_rl.launch for one submission.
#SBATCH --job-name=grpo_llama8b
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --array=0-3
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.log
RECIPE=recipes/grpo_llama8b.yaml
OVERRIDES=(cluster.num_nodes=4)
case "$SLURM_ARRAY_TASK_ID" in
    0) OVERRIDES+=(grpo.seed=1 'data.system_prompt='"'"'a b'"'"'') ;;
    1) OVERRIDES+=(grpo.seed=1 'data.system_prompt="it'"'"'s"') ;;
    2) OVERRIDES+=(grpo.seed=2 'data.system_prompt='"'"'a b'"'"'') ;;
    3) OVERRIDES+=(grpo.seed=2 'data.system_prompt="it'"'"'s"') ;;
    *) echo "no task $SLURM_ARRAY_TASK_ID in this script" >&2; exit 2 ;;
esac
export NEMO_RL_RUN_DIR="${NEMO_RL_ROOT:-$SLURM_SUBMIT_DIR}/results/grpo_llama8b/${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
export NEMO_RL_CONTAINER=${NEMO_RL_CONTAINER:-nemo_rl.sqsh}
source "${SLURM_SUBMIT_DIR:?submit from the checkout: sbatch recipes/grpo_llama8b.sh}/slurm/job.sh" "$@"
