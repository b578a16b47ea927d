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
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
RECIPE=recipes/grpo_llama8b.yaml
OVERRIDES=(cluster.num_nodes=4)
export NEMO_RL_CONTAINER=${NEMO_RL_CONTAINER:-nemo_rl.sqsh}
source "${SLURM_SUBMIT_DIR:?submit from the checkout: sbatch recipes/grpo_llama8b.sh}/slurm/job.sh" "$@"
