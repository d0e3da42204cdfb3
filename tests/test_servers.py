"""The test servers themselves: the faults that other tests count on must really happen."""

import concurrent.futures

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from reben_cloud.store import open_store
from tests.faultproxy import RandomRule

pytestmark = pytest.mark.s3


def test_the_proxy_breaks_what_it_is_told_to_and_the_store_recovers(s3_bucket, fault_proxy):
    data = bytes(range(256)) * 4096
    open_store(s3_bucket.url, s3_bucket.storage_options).put("x", data)
    store = open_store(s3_bucket.url, s3_bucket.through(fault_proxy.endpoint).storage_options)
    for fault in ("503", "reset-before", "reset-mid", "truncate"):
        fault_proxy.add("GET", fault)

        assert bytes(store.get("x")) == data

    assert [f for _, f in fault_proxy.log if f] == ["503", "reset-before", "reset-mid", "truncate"]


def test_a_flipped_byte_passes_every_client(s3_bucket, fault_proxy):
    data = bytes(100_000)
    open_store(s3_bucket.url, s3_bucket.storage_options).put("x", data)
    store = open_store(s3_bucket.url, s3_bucket.through(fault_proxy.endpoint).storage_options)
    fault_proxy.add("GET", "corrupt")

    read = bytes(store.get_range("x", 0, 100_000))

    assert sum(a != b for a, b in zip(read, data, strict=True)) == 1


def test_random_faults_do_not_depend_on_timing():
    rule = RandomRule(faults=("503", "truncate"), rate=0.3, seed=7)

    drawn = [rule.draw(f"GET /{i}", attempt) for i in range(1000) for attempt in range(4)]

    assert drawn == [rule.draw(f"GET /{i}", attempt) for i in range(1000) for attempt in range(4)]
    assert 0.2 < sum(fault is not None for fault in drawn) / 3000 < 0.4
    assert all(fault is None for fault in drawn[3::4])


def test_the_slow_gateway_throttles(s3_bucket, slow_gateway):
    s3_bucket.server.client().put_object(Bucket=s3_bucket.name, Key="x", Body=bytes(1_000_000))
    client = boto3.client(
        "s3",
        endpoint_url=slow_gateway.endpoint,
        aws_access_key_id=slow_gateway.key,
        aws_secret_access_key=slow_gateway.secret,
        region_name=slow_gateway.region,
        config=Config(retries={"total_max_attempts": 1}, max_pool_connections=32),
    )

    def get(_):
        try:
            client.get_object(Bucket=s3_bucket.name, Key="x")["Body"].read()
        except ClientError as error:
            return error.response["Error"]["Code"]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        codes = list(pool.map(get, range(200)))

    assert set(codes) == {None, "SlowDown"}
