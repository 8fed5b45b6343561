#!/usr/bin/env bash
# Build the Flex Templates with Cloud Build, or launch one. docs/dataflow.md says what has to be there before.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat >&2 <<'EOF'
usage: dataflow.sh build                     makes the images and the templates
       dataflow.sh pin                       pins the base images to what their tags name now, by digest
       dataflow.sh launch encode|decode|compact [NAME=VALUE ...] [--FLAG=VALUE ...]
                                             starts a job; the names are those of its metadata.json, the flags those
                                             of `gcloud dataflow flex-template run`:
                                               --max-workers=100 --num-workers=10 --worker-machine-type=c3-standard-4
                                               --worker-zone=us-central1-a --network=NETWORK --subnetwork=SUBNETWORK
                                               --disable-public-ips --dataflow-kms-key=KEY
                                               --service-account-email=ACCOUNT --additional-user-labels=team=video

In the environment:
  PROJECT, REGION      where the job runs
  TEMPLATES            gs://BUCKET/FOLDER of the templates, encode.json and so on
  REPOSITORY, TAG      build: REGION-docker.pkg.dev/PROJECT/REPOSITORY, and the images' tag (default: the commit)
  STAGING              launch: gs://BUCKET/FOLDER for what the job stages (default: TEMPLATES/staging)
  LAUNCH_FLAGS         launch: flags for every launch, before those of the command line
EOF
  exit 2
}

command=${1:-}
[ -n "$command" ] && shift
case "$command" in
  pin)
    [ $# -eq 0 ] || usage
    python3 dataflow_templates/pin_images.py
    ;;
  build)
    [ $# -eq 0 ] || usage
    : "${PROJECT:?}" "${REGION:?}" "${TEMPLATES:?}" "${REPOSITORY:?}"
    python3 dataflow_templates/pin_images.py --check
    make wheel
    gcloud builds submit . --project="$PROJECT" --region="$REGION" --config=dataflow_templates/cloudbuild.yaml \
      --substitutions="_REPOSITORY=$REPOSITORY,_TEMPLATES=${TEMPLATES%/},_TAG=${TAG:-$(git rev-parse --short HEAD)}"
    ;;
  launch)
    : "${PROJECT:?}" "${REGION:?}" "${TEMPLATES:?}"
    job=${1:-}
    case "$job" in encode | decode | compact) ;; *) usage ;; esac
    shift
    read -r -a flags <<< "${LAUNCH_FLAGS:-}"
    parameters=()
    for argument; do
      case "$argument" in
        --*) flags+=("$argument") ;;
        *=*) parameters+=("$argument") ;;
        *) usage ;;
      esac
    done
    # Globs may hold commas, which gcloud would part a list at: the list is parted at | instead.
    list=$(IFS='|'; echo "${parameters[*]}")
    gcloud dataflow flex-template run "vidpress-$job-$(date -u +%Y%m%d-%H%M%S)" --project="$PROJECT" \
      --region="$REGION" --template-file-gcs-location="${TEMPLATES%/}/$job.json" \
      --staging-location="${STAGING:-${TEMPLATES%/}/staging}" --temp-location="${STAGING:-${TEMPLATES%/}/staging}/temp" \
      --parameters="^|^$list" "${flags[@]}"
    ;;
  *) usage ;;
esac
