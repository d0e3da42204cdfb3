"""S3 by its usual names: options in two dialects, the ``AWS_*`` variables, profiles and roles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from reben_cloud.errors import StorageError
from reben_cloud.store.secrecy import mask, scrub

_FSSPEC_NAMES = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "anon": "skip_signature",
    "endpoint_url": "endpoint",
    "region_name": "region",
    "requester_pays": "request_payer",
}

_STYLES = {"path": False, "virtual": True, "auto": None}

_OPTIONS = frozenset(_FSSPEC_NAMES.values()) | {
    "profile",
    "virtual_hosted_style_request",
    "unsigned_payload",
}


def s3_config(storage_options: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Obstore's S3 settings from `storage_options` and the environment.

    Args:
        storage_options: Options in fsspec's or obstore's words, as in `open_store`.
        environ: The environment; the process's by default.

    Raises:
        ValueError: If an option is unknown.
    """
    env = os.environ if environ is None else environ
    given = dict(storage_options)
    given.update(given.pop("client_kwargs", None) or {})
    if (addressing := _addressing(given.pop("config_kwargs", None) or {})) is not None:
        given["virtual_hosted_style_request"] = addressing
    config: dict[str, Any] = {}
    for name, value in given.items():
        known = _FSSPEC_NAMES.get(name, name.removeprefix("aws_"))
        if known not in _OPTIONS:
            raise ValueError(
                f"unknown storage option {name!r}; "
                f"known are {', '.join(sorted(_OPTIONS | _FSSPEC_NAMES.keys()))}, "
                "client_kwargs and config_kwargs"
            )
        if value is not None:
            config[known] = value
    endpoint = config.get("endpoint") or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    if endpoint:
        # A server of one's own rarely has a DNS name for each bucket: path style is what all of them take.
        config.setdefault("virtual_hosted_style_request", False)
        config["endpoint"] = endpoint
    if "region" not in config:
        config["region"] = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
    if env.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "yes", "true"):  # GDAL's name for it
        config.setdefault("skip_signature", True)
    if not env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_PROFILE"):
        config.setdefault("profile", env["AWS_PROFILE"])
    return config


def _addressing(config_kwargs: Mapping[str, Any]) -> bool | None:
    """Whether botocore's settings want the bucket in the server's name; None if they leave it open.

    Raises:
        ValueError: If they say anything else.
    """
    style = config_kwargs.get("s3", {}).get("addressing_style", "auto")
    if config_kwargs not in ({}, {"s3": {}}, {"s3": {"addressing_style": style}}) or style not in _STYLES:
        raise ValueError(
            "of config_kwargs only {'s3': {'addressing_style': " + " | ".join(map(repr, _STYLES)) + "}} is "
            f"understood, got {mask(repr(config_kwargs))}"
        )
    return _STYLES[style]


def aws_credentials(profile: str | None) -> Any:
    """Credentials of ``~/.aws`` or of the machine's role, found and refreshed by boto3.

    boto3 gives up on a machine without a role after seconds, obstore after a minute.

    Raises:
        StorageError: If there are none.
    """
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session(profile_name=profile)
        found = session.get_credentials()
    except BotoCoreError as error:
        raise StorageError(f"no S3 credentials: {mask(str(error))}") from scrub(error)
    if found is None:
        raise StorageError(
            "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile "
            "in ~/.aws; AWS_NO_SIGN_REQUEST=1 reads a public bucket without any"
        )
    return Boto3CredentialProvider(session)
