"""Pin the images in the Dockerfile and the build file to what their tags name now; `--check` checks that they are.

An image is pinned by its digest, `name:tag@sha256:...`: nobody can exchange what a digest names, but anyone with the
right to push can exchange what a tag names. The digest is computed from the manifest, which registries give to anyone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

FOLDER = pathlib.Path(__file__).parent
FILES = (FOLDER / "Dockerfile", FOLDER / "cloudbuild.yaml")

# `docker.io/library/python:3.11` after FROM, or after `name:` and perhaps the name of an anchor.
IMAGE = re.compile(
    r"(?m)^(?P<before>FROM |\s+(?:- )?name: (?:&\w+ )?)"
    r"(?P<host>[\w.-]+\.[\w-]+)/(?P<name>[\w./-]+):(?P<tag>[\w.-]+)(?P<digest>@sha256:[0-9a-f]{64})?(?=\s)"
)

# An image for several architectures, or for one; as Docker's format and as the Open Container Initiative's.
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
HOSTS = {"docker.io": "https://registry-1.docker.io"}


class PinError(Exception):
    """An image that cannot be pinned, or is not pinned; the message names it and the fix."""


def resolve(host: str, name: str, tag: str) -> str:
    """Return the digest of what a tag names, as 'sha256:...'.

    Source: OCI Distribution Specification 1.1, "Pulling manifests"; Docker's "Token Authentication Specification".

    Raises:
      PinError: If the registry does not answer, or does not give the image to everyone.
    """
    url = f"{HOSTS.get(host, f'https://{host}')}/v2/{name}/manifests/{tag}"
    headers = {"Accept": ", ".join(MANIFESTS)}
    try:
        try:
            manifest = _get(url, headers)
        except urllib.error.HTTPError as error:
            challenge = dict(re.findall(r'(\w+)="([^"]*)"', error.headers.get("WWW-Authenticate", "")))
            if error.code != 401 or "realm" not in challenge:
                raise
            query = urllib.parse.urlencode({key: challenge[key] for key in ("service", "scope") if key in challenge})
            answer = json.loads(_get(f"{challenge['realm']}?{query}", {}))
            token = answer.get("token") or answer["access_token"]
            manifest = _get(url, {**headers, "Authorization": f"Bearer {token}"})
    except (OSError, ValueError, KeyError) as error:
        raise PinError(
            f"{host}/{name}:{tag} cannot be looked up at {url} ({error}): check its name and tag."
        ) from error
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def _get(url: str, headers: dict[str, str]) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return answer.read()


def pin(text: str) -> str:
    """Return the text of a Dockerfile or build file with the digest of each image that has a tag."""
    return IMAGE.sub(
        lambda found: (
            "{before}{host}/{name}:{tag}@".format(**found.groupdict())
            + resolve(found["host"], found["name"], found["tag"])
        ),
        text,
    )


def check(text: str) -> None:
    """Raise PinError if an image has no digest."""
    for found in IMAGE.finditer(text):
        if not found["digest"]:
            image = "{host}/{name}:{tag}".format(**found.groupdict())
            raise PinError(f"{image} is not pinned by a digest: run `dataflow_templates/dataflow.sh pin`, and commit.")


def main() -> None:
    """Pin, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if an image has no digest")
    parser.add_argument("files", nargs="*", type=pathlib.Path, default=FILES)
    args = parser.parse_args()
    try:
        # All of them first: either every image is pinned, or nothing changes.
        texts = {path: path.read_text() for path in args.files}
        for path, text in {path: text if args.check else pin(text) for path, text in texts.items()}.items():
            if args.check:
                check(text)
            elif text != texts[path]:
                path.write_text(text)
                print(f"Pinned the images of {path}.")
    except PinError as error:
        sys.exit(f"pin_images.py: error: {error}")


if __name__ == "__main__":
    main()
