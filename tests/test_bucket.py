"""Buckets, policies and links, against a real server that enforces them."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pyarrow as pa
import pytest
import webdataset

import reben_cloud as rc
from reben_cloud.bucket import access_policy, create_bucket, presign, put_policy, s3_client, share
from reben_cloud.build import build, make_plan
from reben_cloud.errors import ConflictError, StorageError
from reben_cloud.schema import TensorSpec
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests.conftest import empty_bucket
from tests.roots import synthetic_root

DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def other(s3_server):
    """An account that owns nothing."""
    return s3_server.add_user("other", "otherkey", "othersecret0123456789")


@pytest.fixture
def arn(other):
    return "arn:aws:iam:::user/other"


@pytest.mark.s3
def test_a_bucket_is_made_with_its_settings_and_making_it_again_is_fine(s3_server):
    name = "reben-made"

    first = create_bucket(name, s3_server.storage_options, versioning=True)
    again = create_bucket(name, s3_server.storage_options, versioning=True)

    client = s3_server.client()
    assert client.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    assert client.get_bucket_cors(Bucket=name)["CORSRules"][0]["AllowedMethods"] == ["GET", "HEAD"]
    rules = client.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    assert [rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] for rule in rules] == [7]
    assert len(first) == len(again) == 4
    empty_bucket(client, name)
    client.delete_bucket(Bucket=name)


@pytest.mark.s3
def test_a_name_that_is_somebody_elses_is_a_conflict(s3_bucket, other):
    with pytest.raises(ConflictError, match=f"{s3_bucket.name}.*somebody else"):
        create_bucket(s3_bucket.name, other.storage_options)


@pytest.mark.s3
def test_wrong_credentials_are_one_clear_line(s3_server):
    options = {**s3_server.storage_options, "secret": "wrong"}

    with pytest.raises(StorageError, match="cannot make the bucket 'reben-x': SignatureDoesNotMatch"):
        create_bucket("reben-x", options)


@pytest.mark.s3
def test_no_server_is_one_clear_line():
    with pytest.raises(StorageError, match=r"Could not connect.*check AWS_ENDPOINT_URL"):
        create_bucket("reben-x", {"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": "s"})


@pytest.mark.s3
def test_a_stranger_can_do_nothing(s3_bucket, other):
    open_store(s3_bucket.url, s3_bucket.storage_options).put("r/x", DATA)
    store = open_store(s3_bucket.url, other.storage_options)

    for attempt in (
        lambda: store.get("r/x"),
        lambda: list(store.list()),
        lambda: store.put("r/y", b"1"),
        lambda: store.delete("r/x"),
    ):
        with pytest.raises(StorageError, match="permission denied"):
            attempt()


@pytest.mark.s3
def test_a_reader_reads_and_lists_but_writes_nothing(s3_bucket, other, arn):
    open_store(s3_bucket.url, s3_bucket.storage_options).put("r/x", DATA)
    policy = access_policy(s3_bucket.name, "reader", principals=[arn])
    put_policy(s3_bucket.name, json.dumps(policy), s3_bucket.storage_options)
    store = open_store(s3_bucket.url, other.storage_options)

    assert bytes(store.get_range("r/x", 3, 5)) == DATA[3:8]
    assert list(store.list("r")) == [("r/x", len(DATA))]
    assert not store.exists("r/missing")
    for attempt in (
        lambda: store.put("r/x", b"1"),
        lambda: store.put("r/y", b"1"),
        lambda: store.delete("r/x"),
    ):
        with pytest.raises(StorageError, match="permission denied"):
            attempt()
    assert bytes(store.get("r/x")) == DATA


@pytest.mark.s3
def test_a_builder_writes_below_its_prefix_and_deletes_nothing(s3_bucket, other, arn):
    policy = access_policy(s3_bucket.name, "builder", prefix="r", principals=[arn])
    put_policy(s3_bucket.name, json.dumps(policy), s3_bucket.storage_options)
    store = open_store(s3_bucket.url, other.storage_options)

    assert not store.exists("r/x")
    store.put("r/x", DATA)
    store.put("r/manifest.json", b"{}", create=True)

    assert sorted(store.list("r")) == [("r/manifest.json", 2), ("r/x", len(DATA))]
    with pytest.raises(FileExistsError):
        store.put("r/manifest.json", b"{}", create=True)
    for attempt in (lambda: store.delete("r/x"), lambda: store.put("elsewhere", b"1")):
        with pytest.raises(StorageError, match="permission denied"):
            attempt()
    assert bytes(store.get("r/x")) == DATA


@pytest.mark.s3
def test_a_public_bucket_is_read_without_credentials(s3_bucket):
    open_store(s3_bucket.url, s3_bucket.storage_options).put("r/x", DATA)
    put_policy(s3_bucket.name, json.dumps(access_policy(s3_bucket.name, "public")), s3_bucket.storage_options)
    nobody = open_store(s3_bucket.url, {"anon": True, "endpoint_url": s3_bucket.endpoint})

    assert bytes(nobody.get("r/x")) == DATA
    with pytest.raises(StorageError):
        nobody.put("r/y", b"1")


@pytest.mark.s3
def test_a_link_reads_one_object_until_it_expires(s3_bucket):
    store = open_store(f"{s3_bucket.url}/a root", s3_bucket.storage_options)
    store.put("shards/x.tar", DATA)

    (link,) = presign(store, ["shards/x.tar"], expires_s=60)

    with urllib.request.urlopen(link) as answer:
        assert answer.read() == DATA
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(link.replace("x.tar", "y.tar"))


def test_a_link_needs_s3_and_a_week_at_most(tmp_path):
    with pytest.raises(ValueError, match="only objects on S3"):
        presign(open_store(tmp_path), ["x"])
    with pytest.raises(ValueError, match="604800"):
        presign(open_store("s3://b", {"key": "k", "secret": "s"}), ["x"], expires_s=8 * 24 * 3600)


def test_links_without_credentials_say_what_to_set():
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
        presign(open_store("s3://bucket", {"region": "us-east-1"}), ["x"])


def test_the_client_speaks_of_aws_when_no_endpoint_is_given():
    assert "amazonaws.com" in s3_client({"region": "eu-central-1"}).meta.endpoint_url


@pytest.mark.parametrize("name", ["", "s3://b", "b/p", "-b"])
def test_what_can_be_no_bucket_is_refused(name):
    with pytest.raises(ValueError, match="can be no bucket's name"):
        access_policy(name, "reader")
    with pytest.raises(ValueError, match="can be no bucket's name"):
        create_bucket(name)


def test_the_policies_allow_what_the_store_does_and_no_more():
    two = access_policy("b", "reader", prefix=["root/", "layers/dem"])
    assert two["Statement"][1]["Resource"] == ["arn:aws:s3:::b/root/*", "arn:aws:s3:::b/layers/dem/*"]
    policy = access_policy("b", "builder", prefix="/p/")

    actions = {action for statement in policy["Statement"] for action in statement["Action"]}

    assert not any("Delete" in action or "*" in action for action in actions)
    assert [statement["Resource"] for statement in policy["Statement"]] == [
        "arn:aws:s3:::b",
        "arn:aws:s3:::b/p/*",
    ]
    assert all("Principal" not in statement for statement in policy["Statement"])


@pytest.mark.parametrize("prefix", ["*", "roots/*", "root?", "home/${aws:username}", ["root", "layers/*"]])
def test_a_prefix_that_a_policy_reads_as_a_pattern_is_refused(prefix):
    with pytest.raises(ValueError, match="more than itself: name each prefix"):
        access_policy("b", "reader", prefix=prefix)


@pytest.mark.s3
def test_a_shared_selection_is_read_without_credentials(s3_bucket):
    url, options = f"{s3_bucket.url}/root", s3_bucket.storage_options
    synthetic_root(url, 12, storage_options=options, shard_samples=4)
    selection = rc.open(url, options).search(split="validation")

    links = share(selection, modalities=("s1",), expires_s=60)

    urls = [f"pipe:curl -sf '{link}'" for link in links["shards"]["s1"]]
    keys = {sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    assert set(links["patch_ids"]) == set(selection.patch_ids) <= keys
    assert links["num_patches"] == len(selection) > 0
    assert list(links["shards"]) == ["s1"]
    with urllib.request.urlopen(links["patches"]) as answer:
        assert answer.read(4) == b"PAR1"
    assert links["layers"] == {}
    with pytest.raises(ValueError, match="has no lidar"):
        share(selection, modalities=("lidar",))


@pytest.mark.s3
def test_layers_are_shared_with_a_selection(s3_bucket, tmp_path):
    url, options = f"{s3_bucket.url}/root", s3_bucket.storage_options
    source, metadata = open_source("synthetic:12")
    build(make_plan(source, metadata, open_store(url, options)))
    ds = rc.open(url, options)
    ids = ds.selection.patch_ids
    spec = TensorSpec(name="dem", shape=(2,), dtype="int16")
    patches = [(patch_id, np.ones(2, np.int16)) for patch_id in ids]
    at = f"{s3_bucket.url}/dem"
    rc.write_layer(at, ds, name="dem", tensors=spec, patches=patches, storage_options=options)
    texts = pa.table({"patch_id": ids * 2, "text": ids * 2})
    rc.write_table(f"{s3_bucket.url}/txt", ds, name="txt", table=texts, storage_options=options)
    layers = [rc.open_layer(f"{s3_bucket.url}/{name}", options) for name in ("dem", "txt")]

    links = share(ds.with_layers(*layers).search(), modalities=("dem",), expires_s=60)

    urls = [f"pipe:curl -sf '{link}'" for link in links["shards"]["dem"]]
    keys = [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    assert sorted(keys) == sorted(ids)
    documents = {
        name: [path for path, link in paths.items() if urllib.request.urlopen(link).read(1)]
        for name, paths in links["layers"].items()
    }
    assert documents == {
        "dem": ["layer.json", "rows.parquet", "objects.parquet"],
        "txt": ["layer.json", "rows.parquet", "index.parquet", "objects.parquet"],
    }
    assert list(share(ds.with_layers(*layers).search(), modalities=("s1",))["layers"]) == ["txt"]


@pytest.mark.s3
def test_a_builder_builds_and_a_reader_streams_with_nothing_more_than_their_policies(s3_server, s3_bucket):
    builder = s3_server.add_user("builder", "builderkey", "buildersecret0123456789")
    reader = s3_server.add_user("reader", "readerkey", "readersecret0123456789")
    policy = access_policy(
        s3_bucket.name, "builder", prefix="root", principals=["arn:aws:iam:::user/builder"]
    )
    reading = access_policy(s3_bucket.name, "reader", principals=["arn:aws:iam:::user/reader"])
    policy["Statement"] += [{**s, "Sid": f"Reader{s['Sid']}"} for s in reading["Statement"]]
    put_policy(s3_bucket.name, json.dumps(policy), s3_bucket.storage_options)
    url = f"{s3_bucket.url}/root"

    synthetic_root(url, 12, storage_options=builder.storage_options)
    dataset = rc.open(url, reader.storage_options)
    found = dataset.search(split="train")
    delivered = sum(len(batch["index"]) for batch in RawLoader(found, batch_size=8))
    product = dataset.open_zarr(dataset.products[0]).load()

    assert delivered == len(found) > 0
    assert product.sizes["patch"] > 0
    with pytest.raises(StorageError, match="permission denied"):
        synthetic_root(f"{s3_bucket.url}/other", 12, storage_options=reader.storage_options)
    with pytest.raises(StorageError, match="permission denied"):
        open_store(url, builder.storage_options).delete("manifest.json")


@pytest.mark.s3
def test_the_commands_make_a_bucket_and_share_a_part_of_it(s3_bucket):
    environment = {**os.environ, **s3_bucket.environment}
    synthetic_root(f"{s3_bucket.url}/root", 12, storage_options=s3_bucket.storage_options)

    def run(*arguments):
        command = [sys.executable, "-m", "reben_cloud.cli", "bucket", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    made = run("create", s3_bucket.name, "--versioning")
    policy = json.loads(run("policy", s3_bucket.name, "--access", "public", "--apply"))
    links = json.loads(run("presign", f"{s3_bucket.url}/root", "--split", "train", "--modality", "s2"))

    assert "old versions are kept" in made
    applied = s3_bucket.server.client().get_bucket_policy(Bucket=s3_bucket.name)["Policy"]
    assert json.loads(applied) == policy
    with urllib.request.urlopen(links["shards"]["s2"][0]) as answer:
        assert answer.read(1)
