#!/usr/bin/env python3
"""What a machine of a cluster asks when Ray starts on it: its secrets, or what it is. `cluster-node` in the image.

cluster-node secrets aws NAME REGION    of AWS Secrets Manager, as shell assignments to be evaluated
cluster-node secrets gcp NAME PROJECT   of Google Secret Manager
cluster-node machine FILE               options of `ray start` for the machine with one of this machine's addresses

A secret is a JSON object of environment variables, {"HF_TOKEN": "...", "OPENAI_API_KEY": "..."}; it is written nowhere.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterable


def aws(name: str, region: str) -> str:
    """The secret's text; the machine's instance profile is who asks."""
    import boto3

    return boto3.client("secretsmanager", region_name=region).get_secret_value(SecretId=name)["SecretString"]


def gcp(name: str, project: str) -> str:
    """The secret's text; the machine's service account is who asks."""
    metadata = os.environ.get("GCE_METADATA_URL", "http://metadata.google.internal")
    manager = os.environ.get("SECRET_MANAGER_URL", "https://secretmanager.googleapis.com")
    account = f"{metadata}/computeMetadata/v1/instance/service-accounts/default/token"
    token = _get(account, {"Metadata-Flavor": "Google"})["access_token"]
    secret = f"{manager}/v1/projects/{project}/secrets/{name}/versions/latest:access"
    return base64.b64decode(_get(secret, {"Authorization": f"Bearer {token}"})["payload"]["data"]).decode()


def _get(url: str, headers: dict[str, str]) -> dict:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def exports(secret: str) -> str:
    """A line of shell for each variable.

    Raises:
        SystemExit: it is no JSON object of variables; the message holds nothing of it.
    """
    try:
        variables = json.loads(secret)
    except json.JSONDecodeError:
        variables = None
    if not isinstance(variables, dict) or not all(isinstance(value, str) for value in variables.values()):
        raise SystemExit("the secret must be a JSON object of environment variables and their texts")
    for name in variables:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise SystemExit("the secret has a key that is no name of an environment variable")
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def machines(lines: Iterable[str]) -> dict[str, tuple[str, int, int]]:
    """Group, CPUs and GPUs by address.

    Raises:
        SystemExit: names the line.
    """
    found: dict[str, tuple[str, int, int]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 4 or not (words[2] + words[3]).isdigit() or words[0] in found:
            raise SystemExit(f"line {number}: must be a new address, a group, CPUs and GPUs")
        found[words[0]] = (words[1], int(words[2]), int(words[3]))
    return found


def start_options(known: dict[str, tuple[str, int, int]], addresses: Iterable[str]) -> str:
    """Options of ``ray start``, without a space in any of them.

    Raises:
        SystemExit: no address is known.
    """
    own = [address for address in addresses if address in known]
    if not own:
        raise SystemExit("none of this machine's addresses is in the file")
    group, cpus, gpus = known[own[0]]
    return f"--num-cpus={cpus} --num-gpus={gpus} --resources=" + json.dumps({group: 1}, separators=(",", ":"))


def main(arguments: list[str]) -> None:
    """See the top of the file."""
    match arguments:
        case ["secrets", "aws", name, region]:
            print(exports(aws(name, region)), end="")
        case ["secrets", "gcp", name, project]:
            print(exports(gcp(name, project)), end="")
        case ["machine", path]:
            addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()  # noqa: S607
            with open(path, encoding="utf-8") as file:
                print(start_options(machines(file), addresses))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
