#!/bin/bash
# Where the agents run: sets CONTAINER_RUNTIME, CONTAINER_SRUN (options for srun) and
# CONTAINER_COMMAND (words before the program) from the variables of the site.
#   NEMO_RL_CONTAINER_RUNTIME  none, pyxis or apptainer
#   NEMO_RL_CONTAINER          image: a .sqsh file or registry name, a .sif file
#   NEMO_RL_CONTAINER_MOUNTS   further mounts "from:to,from:to"
# The checkout, the run folder, the temporary folder and those of NEMO_RL_CACHE and HF_HOME
# are mounted at their own path; the home folder is not asked for.
# shellcheck disable=SC2034  # read by job.sh

CONTAINER_RUNTIME=${NEMO_RL_CONTAINER_RUNTIME:-none}
CONTAINER_SRUN=()
CONTAINER_COMMAND=()

refuse() { say "$*"; exit 2; }

container_mounts() {
    local folder mounts=${NEMO_RL_CONTAINER_MOUNTS:-}
    for folder in "$NEMO_RL_ROOT" "$RUN_DIR" "${NEMO_RL_TMPDIR:-/tmp}" \
        "${NEMO_RL_CACHE:-}" "${HF_HOME:-}"; do
        [ -z "$folder" ] || mounts+=${mounts:+,}$folder:$folder
    done
    printf '%s\n' "$mounts"
}

# Neither runtime can quote: of such a path it would mount something else.
check_paths() {
    local folder
    for folder in "$NEMO_RL_ROOT" "$RUN_DIR" "${NEMO_RL_TMPDIR:-}" "${HF_HOME:-}"; do
        case $folder in *[,:]*) refuse "$folder cannot be mounted: no ',' or ':' in its name" ;; esac
    done
}

# Without a slash or dot in front pyxis takes a file for a name of a registry.
container_image() {
    IMAGE=${NEMO_RL_CONTAINER:-}
    case $IMAGE in
        '') refuse "site ${NEMO_RL_SITE:-generic} uses $CONTAINER_RUNTIME, but the image is not set (cluster.container)" ;;
        /*) ;;
        ./* | ../* | *.sqsh | *.squashfs | *.sif) IMAGE=$NEMO_RL_ROOT/$IMAGE ;;
    esac
    [ ! -f "$IMAGE" ] || record_image
}

# For run.json: inside the container the file may not be seen. The digest is that of
# import-image or build.sh, if the file is still theirs.
record_image() {
    NEMO_RL_IMAGE_BYTES=$(stat --dereference --format=%s "$IMAGE")
    export NEMO_RL_IMAGE_BYTES
    if grep -qs "\"bytes\": $NEMO_RL_IMAGE_BYTES\b" "$IMAGE.json"; then
        NEMO_RL_IMAGE_SHA256=$(sed -n 's/.*"sha256": "\([0-9a-f]*\)".*/\1/p' "$IMAGE.json")
        export NEMO_RL_IMAGE_SHA256
    fi
}

# A variable that the image sets would win over the job's, so that those which belong to
# the job are set again inside. Command lines are public: secrets are not among them,
# they come with the rest of the environment. Packages of a home folder that is mounted
# all the same (apptainer does so where the checkout lies in it) are not those of the image.
container_environment() {
    local name path=$NEMO_RL_ROOT${PYTHONPATH:+:$PYTHONPATH}
    CONTAINER_COMMAND+=(env PYTHONNOUSERSITE=1 "PYTHONPATH=$path")
    for name in $(compgen -e); do
        case $name in
            *TOKEN* | *SECRET* | *PASS* | *KEY* | *CREDENTIAL*) ;;
            NEMO_RL_* | NCCL_* | GLOO_* | UCX_* | FI_* | HF_HOME | HF_HUB_OFFLINE)
                CONTAINER_COMMAND+=("$name=${!name}")
                ;;
        esac
    done
}

case $CONTAINER_RUNTIME in
    none) ;;
    pyxis)
        check_paths
        container_image
        CONTAINER_SRUN=(
            "--container-image=$IMAGE"
            "--container-mounts=$(container_mounts)"
            "--container-workdir=$NEMO_RL_ROOT"
            --no-container-mount-home
        )
        container_environment
        ;;
    apptainer)
        check_paths
        container_image
        CONTAINER_COMMAND=(apptainer exec --no-home --bind "$(container_mounts)" --pwd "$NEMO_RL_ROOT")
        [ "${SLURM_GPUS_ON_NODE:-0}" -eq 0 ] || CONTAINER_COMMAND+=(--nv)
        CONTAINER_COMMAND+=("$IMAGE")
        container_environment
        ;;
    *) refuse "NEMO_RL_CONTAINER_RUNTIME=$CONTAINER_RUNTIME is none of: none, pyxis, apptainer" ;;
esac
