"""A root of any size whose shards are computed when they are asked for, and an S3 server that does it.

Only tables are written (`make_root`); payloads are a template in which each tensor begins with a number that patch
and tensor have alone. So whoever is given pixels can tell of which patch and band they are, and every checksum is
that of the bytes that are served.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import queue
import re
import socketserver
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
import xxhash
from numpy.typing import NDArray

from reben_cloud.build.plan import make_plan, manifest_of
from reben_cloud.build.publish import commit_root
from reben_cloud.formats import tar
from reben_cloud.root import layout
from reben_cloud.root.metadata import sample_json
from reben_cloud.root.objects import Objects, WrittenObject
from reben_cloud.root.patches import patches_table
from reben_cloud.root.patches_file import write_patches
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.schema import Modality, Schema
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store

BUCKET = "computed"
SERVED = "served.arrow"
"""The metadata of every patch in the order of the shards."""
GROUPS = "groups.json"
"""Group -> its first row in that table."""
SMALL = 0x3FFF_FFFF_3FFF_FFFF
"""Bits of a number whose two halves are, as float32, finite and between 0 and 2."""


def number_of(patch_id: str) -> int:
    """What the tensors of a patch begin with, but for their own number; room above for a thousand of them."""
    return (xxhash.xxh3_64_intdigest(patch_id.encode()) & SMALL) & ~1023


def expected_numbers(schema: Schema, ids: list[str]) -> Mapping[str, NDArray[np.uint64]]:
    """Batch array -> the numbers that its tensors begin with, shape (len(ids), tensors)."""
    patches = np.array([number_of(i) for i in ids], np.uint64)[:, None]
    found = {}
    for modality in schema.modalities:
        for array in modality.arrays:
            own = np.array([_tensor_number(schema, modality, name) for name in array.tensors], np.uint64)
            found[array.name] = patches + own
    return found


def numbers_in(schema: Schema, batch: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.uint64]]]:
    """The numbers that the tensors of each array of a batch begin with, shape (B, tensors)."""
    for modality in schema.modalities:
        for array in modality.arrays:
            if array.name in batch:
                values = batch[array.name].reshape(len(batch["index"]), len(array.tensors), -1)
                first = np.ascontiguousarray(values[:, :, : 8 // values.itemsize])
                yield array.name, first.view(np.uint64)[:, :, 0]


def _tensor_number(schema: Schema, modality: Modality, tensor: str) -> int:
    names = [(m.name, t.name) for m in schema.modalities for t in m.tensors]
    return names.index((modality.name, tensor))


@dataclass(frozen=True, kw_only=True)
class Template:
    """The payload of a modality, but for what its tensors begin with."""

    payload: NDArray[np.uint8]
    """All of it, shape (payload_bytes,)."""
    places: NDArray[np.int64]
    """Where the tensors begin, in words of 8 bytes."""
    own: NDArray[np.uint64]
    """What is added to the number of the patch at each."""

    @classmethod
    def of(cls, schema: Schema, modality: Modality) -> Template:
        """The template, with noise for pixels."""
        payload = np.random.default_rng(len(modality.name)).integers(0, 200, modality.payload_bytes, np.uint8)
        header = np.frombuffer(modality.payload_header, np.uint8)
        payload[: header.size] = header
        names = [t.name for t in modality.tensors]
        starts = np.array([modality.places[name].offset for name in names])
        if payload.size % 8 or (starts % 8).any():
            raise ValueError(f"{modality.name}: tensors must begin at multiples of 8 bytes")
        own = np.array([_tensor_number(schema, modality, name) for name in names], np.uint64)
        return cls(payload=payload, places=starts // 8, own=own)


# -- making ------------------------------------------------------------------------------------------------


def make_root(official: pa.Table, folder: Path, *, shard_samples: int = 256) -> None:
    """Write the tables of a root of all these patches, with the checksums of what the server computes.

    The sha256 of shards, which only `verify` compares, is that of their path.
    """
    store = open_store(folder)
    options = PlacementOptions(shard_samples=shard_samples)
    plan = make_plan(SyntheticSource(official.num_rows), official, store, options=options)
    groups = plan.placement.column(layout.SHARD_GROUP).cast(pa.string()).combine_chunks()
    codes = pc.index_in(groups, pa.array(sorted(manifest_of(plan).groups))).to_numpy()
    shard = plan.placement.column(layout.SHARD).to_numpy()
    row = plan.placement.column(layout.SHARD_ROW).to_numpy()
    order = np.lexsort((row, shard, codes))
    first = {
        name: int(np.searchsorted(codes[order], n)) for n, name in enumerate(sorted(manifest_of(plan).groups))
    }
    feather.write_feather(plan.table.take(pa.array(order)), folder / SERVED, compression="uncompressed")
    (folder / GROUPS).write_text(json.dumps({"first": first, "shard_samples": shard_samples}))

    maker = Maker(folder, plan.schema)
    written, sums = [], {m.name: np.empty(len(order), np.uint64) for m in plan.schema.modalities}
    for group, count in manifest_of(plan).groups.items():
        for number in range(count.num_shards):
            begin = first[group] + number * shard_samples
            for modality in plan.schema.modalities:
                data = maker.shard(group, modality.name, number)
                path = layout.shard(group, modality.name, number)
                sha256 = hashlib.sha256(path.encode()).hexdigest()
                xxh3 = xxhash.xxh3_64_intdigest(data)
                written.append(WrittenObject(path=path, nbytes=len(data), sha256=sha256, xxh3=xxh3))
                step, size = tar.record_bytes(modality), modality.payload_bytes
                for at in range(maker.num_samples(group, number)):
                    start = at * step + tar.PAYLOAD_OFFSET
                    sums[modality.name][order[begin + at]] = xxhash.xxh3_64_intdigest(
                        data[start : start + size]
                    )
                maker.give_back(modality.name, data)
    placement = plan.placement
    for name, values in sums.items():
        placement = placement.append_column(layout.checksum_column(name), pa.array(values))
    patches = write_patches(patches_table(plan.table, plan.schema, placement), plan.schema)
    store.put(layout.PATCHES, patches)
    objects = Objects.of(written).encode()
    store.put(layout.OBJECTS, objects)
    commit_root(store, manifest_of(plan), patches, objects)


class Maker:
    """Computes shards of a root that `make_root` has written; for any number of threads.

    Args:
        folder: The root.
        schema: Of its patches.
    """

    def __init__(self, folder: Path, schema: Schema) -> None:
        self._table = feather.read_table(folder / SERVED, memory_map=True)
        said = json.loads((folder / GROUPS).read_text())
        self._first: dict[str, int] = said["first"]
        self._full: int = said["shard_samples"]
        starts = [*sorted(self._first.values()), self._table.num_rows]
        self._stop = {name: starts[starts.index(at) + 1] for name, at in self._first.items()}
        self._schema = schema
        self._templates = {m.name: Template.of(schema, m) for m in schema.modalities}
        # Shards in which all but a few bytes of each record stand already.
        self._ready: dict[str, queue.SimpleQueue[NDArray[np.uint8]]] = {
            m.name: queue.SimpleQueue() for m in schema.modalities
        }
        self._texts = functools.lru_cache(maxsize=64)(self._make_texts)

    def num_samples(self, group: str, number: int) -> int:
        """Samples of a shard."""
        return min(self._full, self._stop[group] - self._first[group] - number * self._full)

    def nbytes(self, group: str, modality: str, number: int) -> int:
        """Size of a shard."""
        return tar.shard_bytes(self._schema.modality(modality), self.num_samples(group, number))

    def shard(self, group: str, modality: str, number: int) -> memoryview:
        """The bytes of a shard; `give_back` them."""
        kind, template = self._schema.modality(modality), self._templates[modality]
        ids, texts = self._texts(group, number)
        try:
            if len(ids) < self._full:
                raise queue.Empty
            memory = self._ready[modality].get_nowait()
        except queue.Empty:
            memory = self._blank(kind, template, len(ids))
        step, size = tar.record_bytes(kind), kind.payload_bytes
        records = memory[: len(ids) * step].reshape(len(ids), step)
        names = b"".join(tar._header(f"{i}.{modality}.safetensors", size) for i in ids)
        records[:, : tar.BLOCK_BYTES] = np.frombuffer(names, np.uint8).reshape(len(ids), -1)
        words = records[:, tar.PAYLOAD_OFFSET : tar.PAYLOAD_OFFSET + size].view(np.uint64)
        numbers = np.array([number_of(i) for i in ids], np.uint64)
        words[:, template.places] = numbers[:, None] + template.own
        records[:, -texts.shape[1] :] = texts
        return memory.data

    def give_back(self, modality: str, data: memoryview) -> None:
        """Let the memory of a shard be used again."""
        memory = np.frombuffer(data, np.uint8)
        if memory.nbytes == tar.shard_bytes(self._schema.modality(modality), self._full):
            self._ready[modality].put(memory)

    def _blank(self, kind: Modality, template: Template, count: int) -> NDArray[np.uint8]:
        memory = np.zeros(tar.shard_bytes(kind, count), np.uint8)
        step = tar.record_bytes(kind)
        records = memory[: count * step].reshape(count, step)
        records[:, tar.PAYLOAD_OFFSET : tar.PAYLOAD_OFFSET + kind.payload_bytes] = template.payload
        return memory

    def _make_texts(self, group: str, number: int) -> tuple[list[str], NDArray[np.uint8]]:
        """Ids, and the JSON members with their headers, shape (n, bytes)."""
        begin = self._first[group] + number * self._full
        rows = self._table.slice(begin, self.num_samples(group, number))
        ids = rows.column("patch_id").to_pylist()
        texts = [
            tar._header(f"{i}.json", tar.JSON_BYTES) + tar.encode_json(said)
            for i, said in zip(ids, sample_json(rows, self._schema), strict=True)
        ]
        return ids, np.frombuffer(b"".join(texts), np.uint8).reshape(len(ids), -1)


# -- serving -----------------------------------------------------------------------------------------------

_SHARD = re.compile(r"shards/([\w-]+)/(\w+)/[\w-]+-(\d{6})\.tar")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
    folder: Path
    maker: Maker


class _Answers(socketserver.StreamRequestHandler):
    """GET and HEAD of one bucket's objects, with ranges, as S3 answers them; any credentials will do."""

    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while line := self.rfile.readline().decode("latin-1").strip():
                headers = {}
                while head := self.rfile.readline().decode("latin-1").strip():
                    name, _, value = head.partition(":")
                    headers[name.lower()] = value.strip()
                method, target, _ = line.split(" ")
                self._answer(
                    method, target.partition("?")[0].removeprefix(f"/{BUCKET}/"), headers.get("range")
                )

    def _answer(self, method: str, path: str, wanted: str | None) -> None:
        place, maker = _SHARD.fullmatch(path), self.server.maker
        data: memoryview | None = None
        if place is not None:
            group, modality, number = place[1], place[2], int(place[3])
            size = maker.nbytes(group, modality, number)
        elif (file := self.server.folder / path).is_file():
            data = memoryview(file.read_bytes())
            size = data.nbytes
        else:
            self._head("404 Not Found", 0, {})
            return
        start, stop, status, more = 0, size, "200 OK", {}
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, size - int(last))
            stop = min(int(last) + 1, size) if first and last else size
            status, more = "206 Partial Content", {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self._head(status, stop - start, {"ETag": f'"{path}"', **more})
        if method != "GET":
            return
        if place is None:
            assert data is not None
            self.request.sendall(data[start:stop])
            return
        shard = maker.shard(group, modality, number)
        try:
            self.request.sendall(shard[start:stop])
        finally:
            maker.give_back(modality, shard)

    def _head(self, status: str, nbytes: int, more: Mapping[str, str]) -> None:
        lines = {"Content-Length": str(nbytes), "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", **more}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.request.sendall(f"HTTP/1.1 {status}\r\n{text}\r\n".encode())


def _serve(folder: Path, schema: Schema, tell: Connection) -> None:
    with _Server(("127.0.0.1", 0), _Answers) as server:
        server.folder, server.maker = folder, Maker(folder, schema)
        tell.send(server.server_address[1])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with contextlib.suppress(EOFError):
            tell.recv()  # until whoever started it is gone


@contextlib.contextmanager
def serve(folder: Path, schema: Schema, *, num_servers: int = 1) -> Iterator[list[dict[str, Any]]]:
    """Storage options of servers of a root, each a process of its own, while the context lasts."""
    context = multiprocessing.get_context("spawn")
    ends, processes, options = [], [], []
    for _ in range(num_servers):
        mine, its = context.Pipe()
        process = context.Process(target=_serve, args=(folder, schema, its), daemon=True)
        process.start()
        its.close()
        options.append(
            {
                "key": "any",
                "secret": "any",
                "endpoint_url": f"http://127.0.0.1:{mine.recv()}",
                "client_kwargs": {"region_name": "us-east-1"},
            }
        )
        ends.append(mine)
        processes.append(process)
    try:
        yield options
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.join(10)
