#!/bin/bash
# Builds the image: build.sh [docker|enroot|apptainer]
#   docker     nemo_rl:latest in the local Docker daemon
#   enroot     that, and nemo_rl.sqsh in the checkout (for pyxis)
#   apptainer  that, and nemo_rl.sif in the checkout
# A file gets its SHA-256 beside it, in <file>.json, as import-image writes it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:-docker}
case $kind in
    docker | enroot | apptainer) ;;
    *) echo "usage: containers/build.sh [docker|enroot|apptainer]" >&2; exit 2 ;;
esac

arguments=()
while IFS= read -r line; do
    [[ $line =~ ^[A-Z_]+= ]] && arguments+=(--build-arg "$line")
done < containers/versions.env

record() {
    local digest
    digest=$(sha256sum "$1")
    printf '{"bytes": %s, "sha256": "%s", "source": "dockerd://nemo_rl:latest"}\n' \
        "$(stat --format=%s "$1")" "${digest%% *}" > "$1.json"
    echo "$1: sha256 ${digest%% *}"
}

docker build "${arguments[@]}" --file containers/Dockerfile --tag nemo_rl:latest .

# The new file takes the old one's place when it is whole: jobs may be using that.
case $kind in
    enroot)
        rm -f .nemo_rl.sqsh.partial
        enroot import --output .nemo_rl.sqsh.partial dockerd://nemo_rl:latest
        mv .nemo_rl.sqsh.partial nemo_rl.sqsh
        record nemo_rl.sqsh
        ;;
    apptainer)
        apptainer build --force .nemo_rl.sif.partial containers/nemo_rl.def
        mv .nemo_rl.sif.partial nemo_rl.sif
        record nemo_rl.sif
        ;;
esac
