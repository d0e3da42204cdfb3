"""Buckets around a root: making one, who may do what in it, and links that share a part of it.

It talks to the store through boto3, which knows the parts of S3 that are not objects. It changes
nothing in a root.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

from reben_cloud.errors import ConflictError, StorageError, UnreachableError
from reben_cloud.root import layout
from reben_cloud.root.selection import Selection
from reben_cloud.store import Store, mask, s3_config, scrub

Access = Literal["public", "reader", "builder"]
"""``public`` and ``reader`` stream and search; ``builder`` also writes, but deletes nothing."""

_LIST = ("s3:GetBucketLocation", "s3:ListBucket")
_READ = ("s3:GetObject",)
_WRITE = ("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts", "s3:PutObject")

ACTIONS: Mapping[Access, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "public": (_LIST, _READ),
    "reader": (_LIST, _READ),
    "builder": (_LIST, _READ + _WRITE),
}
"""What each access allows: actions on the bucket, actions on its objects."""

MAX_EXPIRES_S = 7 * 24 * 3600
"""A signature of version 4 is valid for a week at most (AWS Signature Version 4, X-Amz-Expires)."""

_CORS = {
    "CORSRules": [
        {
            "AllowedMethods": ["GET", "HEAD"],
            "AllowedOrigins": ["*"],
            "AllowedHeaders": ["Range", "If-Match", "If-None-Match", "Authorization"],
            "ExposeHeaders": ["Accept-Ranges", "Content-Length", "Content-Range", "ETag"],
            "MaxAgeSeconds": 3600,
        }
    ]
}


def create_bucket(
    name: str,
    storage_options: Mapping[str, object] | None = None,
    *,
    versioning: bool = False,
    cors: bool = True,
    expire_uploads_days: int | None = 7,
) -> list[str]:
    """Make a bucket fit for roots; run again, it only brings an own bucket up to these settings.

    Args:
        name: Of the bucket, 3 to 63 characters.
        storage_options: As in `open_store`.
        versioning: Keep old versions of overwritten objects. A root is immutable and needs none.
        cors: Let pages of any origin read (not write), so that the explorer works in browsers.
        expire_uploads_days: Days after which the parts of an interrupted upload are removed; None
            leaves them.

    Returns:
        What was done, a line each; a setting that the server refuses is a line that begins with ``warning:``.

    Raises:
        ConflictError: If the name belongs to somebody else.
        StorageError: If the store refuses to make it, or cannot be reached.
        ValueError: If the name can be no bucket's.
    """
    _check_bucket(name)
    client = s3_client(storage_options)
    done = []
    with _translated(f"make the bucket {name!r}"):
        try:
            client.create_bucket(Bucket=name, **_location(client))
            done.append(f"bucket {name} is there")
        except client.exceptions.BucketAlreadyOwnedByYou:
            done.append(f"bucket {name} was there")
        except client.exceptions.BucketAlreadyExists as error:
            raise ConflictError(
                f"the bucket name {name!r} belongs to somebody else; choose another"
            ) from error
    if versioning:
        put = partial(client.put_bucket_versioning, VersioningConfiguration={"Status": "Enabled"})
        done.append(_put_setting(name, put, "old versions are kept", "to keep old versions"))
    if cors:
        put = partial(client.put_bucket_cors, CORSConfiguration=_CORS)
        said, what = "pages of any origin may read (CORS)", "to let pages of any origin read (CORS)"
        done.append(_put_setting(name, put, said, what))
    if expire_uploads_days is not None:
        rules = _without_old_uploads(expire_uploads_days)
        put = partial(client.put_bucket_lifecycle_configuration, LifecycleConfiguration=rules)
        said = f"interrupted uploads are removed after {expire_uploads_days} days"
        done.append(_put_setting(name, put, said, "to remove interrupted uploads"))
    return done


def _put_setting(name: str, put: Callable[..., object], said: str, what: str) -> str:
    """Change a setting of a bucket: `said`, or a warning with the code of a refusal, which differs by server."""
    from botocore.exceptions import ClientError

    with _translated(f"configure the bucket {name!r}"):
        try:
            put(Bucket=name)
        except ClientError as error:
            return f"warning: {what}: this server refuses ({error.response['Error'].get('Code', '?')})"
    return said


def _without_old_uploads(days: int) -> dict[str, Any]:
    rule = {
        "ID": "interrupted-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": days},
    }
    return {"Rules": [rule]}


def _check_bucket(name: str) -> None:
    # Wider than the rules of today, which some old buckets do not keep (what is refused, the store tells).
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{,254}", name) is None:
        raise ValueError(
            f"{name!r} can be no bucket's name: give letters, digits, dots and hyphens, without s3:// or a prefix"
        )


def access_policy(
    name: str, access: Access, *, prefix: str | Sequence[str] = "", principals: Iterable[str] = ()
) -> dict[str, Any]:
    """The policy document that gives `access` to a bucket and nothing more.

    Listing is allowed on the whole bucket even when `prefix` is given: where it is not, S3 answers
    403 instead of 404 for an object that is not there, and a build that resumes needs to know.

    A policy cannot keep a builder from overwriting a published root: it knows objects and not whether a root is
    whole, a build that resumes writes its own objects again, and a condition on ``If-None-Match`` is known to AWS alone
    and would end builds on other servers. Give builders the prefix of the root that they build, and take it back when
    it is published; or keep versions (`create_bucket`).

    Args:
        name: Of the bucket.
        access: What to allow.
        prefix: Objects below this prefix only, or below any of several: of a root and of its layers.
        principals: ARNs of those who get it, for a bucket policy. None given: a policy to attach to
            a user or role, which names nobody; for ``public``, everybody.

    Returns:
        A policy document, ready for ``json.dumps``.

    Raises:
        ValueError: If there is no such access, a principal is empty, the name can be no bucket's, or a prefix has a
            sign (``*``, ``?``, ``${``) that a policy reads as a pattern.
    """
    _check_bucket(name)
    if access not in ACTIONS:
        raise ValueError(f"access must be one of {', '.join(ACTIONS)}, got {access!r}")
    on_bucket, on_objects = ACTIONS[access]
    arns = sorted(principals)
    if not all(arns):
        raise ValueError("principals has an empty text; give ARNs, or leave it out to name nobody")
    who: dict[str, Any] = {"Principal": {"AWS": arns}} if arns else {}
    if access == "public":
        who = {"Principal": "*"}
    resource = f"arn:aws:s3:::{name}"
    for one in [prefix] if isinstance(prefix, str) else prefix:
        if found := [sign for sign in ("*", "?", "${") if sign in one]:
            raise ValueError(
                f"the prefix {one!r} has {found[0]!r}, which a policy takes for more than itself: name each prefix"
            )
    prefixes = [one.strip("/") for one in ([prefix] if isinstance(prefix, str) else prefix)] or [""]
    below = [f"{resource}/{one}/*" if one else f"{resource}/*" for one in prefixes]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Sid": "List", "Effect": "Allow", **who, "Action": list(on_bucket), "Resource": resource},
            {
                "Sid": "Objects",
                "Effect": "Allow",
                **who,
                "Action": list(on_objects),
                "Resource": below[0] if len(below) == 1 else below,
            },
        ],
    }


def put_policy(name: str, document: str, storage_options: Mapping[str, object] | None = None) -> None:
    """Set the bucket's policy, in place of the one it has.

    Args:
        name: Of the bucket.
        document: The policy, JSON.
        storage_options: As in `open_store`.

    Raises:
        StorageError: If the store refuses or cannot be reached.
    """
    with _translated(f"set the policy of the bucket {name!r}"):
        s3_client(storage_options).put_bucket_policy(Bucket=name, Policy=document)


def presign(store: Store, paths: Iterable[str], *, expires_s: int = MAX_EXPIRES_S) -> list[str]:
    """Links that anybody can read objects with, without credentials, until they expire.

    Nothing is contacted: a link to an object that is not there is made all the same. A link made with
    temporary credentials dies with them.

    Args:
        store: Where the objects lie; on S3.
        paths: Of the objects in `store`.
        expires_s: Seconds until the links expire, in [1, 604800].

    Returns:
        A URL a path, in their order.

    Raises:
        ValueError: If the store is not on S3, or `expires_s` out of range.
        StorageError: If there are no credentials to sign with.
    """
    parts = urlsplit(store.url)
    if parts.scheme != "s3":
        raise ValueError(f"only objects on S3 can be shared by a link, and {store.url} is not there")
    if not 1 <= expires_s <= MAX_EXPIRES_S:
        raise ValueError(f"a link must expire within [1, {MAX_EXPIRES_S}] seconds, got {expires_s}")
    client = s3_client(store.storage_options)
    prefix = parts.path.strip("/")
    with _translated(f"sign links to {store.url}"):
        return [
            client.generate_presigned_url(
                "get_object",
                Params={"Bucket": parts.netloc, "Key": f"{prefix}/{path}" if prefix else path},
                ExpiresIn=expires_s,
            )
            for path in paths
        ]


def share(
    selection: Selection, *, modalities: Sequence[str] | None = None, expires_s: int = MAX_EXPIRES_S
) -> dict[str, Any]:
    """Links to everything that somebody without credentials needs to read a selection.

    Shards are shared whole, so others' patches that lie in them are shared too. The links of each
    modality can be given to webdataset as they are.

    Args:
        selection: What to share, of a root on S3, with its layers, which may lie in other buckets.
        modalities: Of the root's and of array layers; all by default. Tables are shared all.
        expires_s: Seconds until the links expire, in [1, 604800].

    Returns:
        ``expires`` (UTC, ISO 8601), ``num_patches``, ``patches`` (link to the metadata table),
        ``patch_ids``, ``shards``: modality -> links, in the order of group and number, and ``layers``: of each layer
        that is shared, name -> path -> link to its documents and tables.

    Raises:
        NotFoundError: If the selection is empty.
        ValueError: If the root or a layer is not on S3, or lacks a modality.
        StorageError: If there are no credentials to sign with.
    """
    selection.require_patches("nothing to share")
    selection.refuse_repeats("a share")
    store = selection.dataset.store
    wanted = tuple(modalities or selection.dataset.modalities)
    if missing := set(wanted) - set(selection.dataset.modalities):
        raise ValueError(f"{store.url} has no {', '.join(sorted(missing))}")
    table = selection.columns([layout.SHARD_GROUP, layout.SHARD]).to_pandas()
    places = sorted(set(zip(table[layout.SHARD_GROUP], table[layout.SHARD], strict=True)))
    layers = selection.dataset.layers
    shards = {
        m: presign(
            layers[m].store if m in layers else store,
            [layout.shard(group, m, int(number)) for group, number in places],
            expires_s=expires_s,
        )
        for m in wanted
    }
    documents = {
        name: [
            layout.LAYER_MANIFEST,
            layout.ROWS,
            *([layout.INDEX] if layer.manifest.kind == "many" else []),
            *([layout.OBJECTS] if layer.manifest.objects_sha256 is not None else []),
        ]
        for name, layer in layers.items()
        if layer.modality is None or name in wanted
    }
    expires = datetime.now(UTC) + timedelta(seconds=expires_s)
    return {
        "expires": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "num_patches": len(selection),
        "patches": presign(store, [layout.PATCHES], expires_s=expires_s)[0],
        "patch_ids": selection.patch_ids,
        "shards": shards,
        "layers": {
            name: dict(zip(paths, presign(layers[name].store, paths, expires_s=expires_s), strict=True))
            for name, paths in documents.items()
        },
    }


def s3_client(storage_options: Mapping[str, object] | None = None) -> Any:
    """A boto3 S3 client for the `storage_options` of `open_store`; credentials as boto3 finds them."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    given = s3_config(dict(storage_options or {}))
    session = boto3.Session(profile_name=given.get("profile"))
    path_style = "endpoint" in given and not given.get("virtual_hosted_style_request")
    return session.client(
        "s3",
        endpoint_url=given.get("endpoint"),
        aws_access_key_id=given.get("access_key_id"),
        aws_secret_access_key=given.get("secret_access_key"),
        aws_session_token=given.get("session_token"),
        region_name=given.get("region"),
        config=Config(
            # boto3 would sign links for other endpoints with version 2, which newer servers refuse.
            signature_version=UNSIGNED if given.get("skip_signature") else "s3v4",
            s3={"addressing_style": "path" if path_style else "auto"},
            # Servers older than 2025 know no checksum trailers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=5,
            read_timeout=20,
            retries={"total_max_attempts": 3, "mode": "standard"},
        ),
    )


def _location(client: Any) -> dict[str, Any]:
    """AWS wants to hear the region, but for its first one; other servers refuse names they do not know."""
    region = client.meta.region_name
    on_aws = urlsplit(client.meta.endpoint_url).hostname.endswith(".amazonaws.com")
    if not on_aws or region in (None, "us-east-1", "aws-global"):
        return {}
    return {"CreateBucketConfiguration": {"LocationConstraint": region}}


@contextmanager
def _translated(what: str) -> Iterator[None]:
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        EndpointConnectionError,
        HTTPClientError,
        NoCredentialsError,
    )

    try:
        yield
    except ClientError as error:
        code = error.response["Error"].get("Code", "?")
        text = error.response["Error"].get("Message") or "no further word"
        raise StorageError(f"cannot {what}: {code} ({mask(text)})") from scrub(error)
    except NoCredentialsError as error:
        raise StorageError(
            f"cannot {what}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except (EndpointConnectionError, HTTPClientError) as error:
        raise UnreachableError(
            f"cannot {what}: {mask(str(error))}; check AWS_ENDPOINT_URL or --endpoint-url"
        ) from scrub(error)
    except BotoCoreError as error:
        raise StorageError(f"cannot {what}: {mask(str(error))}") from scrub(error)
