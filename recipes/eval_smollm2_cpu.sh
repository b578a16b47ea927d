#!/bin/bash
# Evaluation, SmolLM2-135M-Instruct on sums of two digits. 1 node, 2 CPU workers, no GPU.
# Written by: python -m nemo_rl.launch recipes/eval_smollm2_cpu.yaml --write
# (edit the .yaml, then run it again)
#SBATCH --job-name=eval_smollm2_cpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=00:30:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
RECIPE=recipes/eval_smollm2_cpu.yaml
source "${SLURM_SUBMIT_DIR:?submit from the checkout: sbatch recipes/eval_smollm2_cpu.sh}/slurm/job.sh" "$@"
