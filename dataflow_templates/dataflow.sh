#!/usr/bin/env bash
# Build the Flex Templates with Cloud Build, or launch one. docs/dataflow.md says what has to be there before.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat >&2 <<'EOF'
usage: dataflow.sh build                                  makes both images and both templates
       dataflow.sh launch encode|decode NAME=VALUE ...    starts a job; the names are those of its metadata.json

In the environment:
  PROJECT, REGION      where the job runs
  TEMPLATES            gs://BUCKET/FOLDER of the templates, encode.json and decode.json
  REPOSITORY, TAG      build: REGION-docker.pkg.dev/PROJECT/REPOSITORY, and the images' tag (default: the commit)
  STAGING              launch: gs://BUCKET/FOLDER for what the job stages (default: TEMPLATES/staging)
  LAUNCH_FLAGS         launch: further flags of `gcloud dataflow flex-template run`, such as
                       "--max-workers=100 --service-account-email=... --disable-public-ips"
EOF
  exit 2
}

command=${1:-}
[ -n "$command" ] && shift
case "$command" in
  build)
    [ $# -eq 0 ] || usage
    : "${PROJECT:?}" "${REGION:?}" "${TEMPLATES:?}" "${REPOSITORY:?}"
    make wheel
    gcloud builds submit . --project="$PROJECT" --region="$REGION" --config=dataflow_templates/cloudbuild.yaml \
      --substitutions="_REPOSITORY=$REPOSITORY,_TEMPLATES=${TEMPLATES%/},_TAG=${TAG:-$(git rev-parse --short HEAD)}"
    ;;
  launch)
    : "${PROJECT:?}" "${REGION:?}" "${TEMPLATES:?}"
    job=${1:-}
    [ "$job" = encode ] || [ "$job" = decode ] || usage
    shift
    # Globs may hold commas, which gcloud would part a list at: the list is parted at | instead.
    parameters=$(IFS='|'; echo "$*")
    read -r -a flags <<< "${LAUNCH_FLAGS:-}"
    gcloud dataflow flex-template run "vidpress-$job-$(date -u +%Y%m%d-%H%M%S)" --project="$PROJECT" \
      --region="$REGION" --template-file-gcs-location="${TEMPLATES%/}/$job.json" \
      --staging-location="${STAGING:-${TEMPLATES%/}/staging}" --temp-location="${STAGING:-${TEMPLATES%/}/staging}/temp" \
      --parameters="^|^$parameters" "${flags[@]}"
    ;;
  *) usage ;;
esac
