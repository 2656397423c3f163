"""Objects below a bucket's prefix, by botocore: one request a method, but for listings."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from ray_learngene.io.backend import Found, HalfUpload
from ray_learngene.io.errors import s3_code
from ray_learngene.io.filesystems import s3_client

ABSENT = {"NOSUCHKEY", "404"}
NO_UPLOAD = {"NOSUCHUPLOAD"}
PAST_THE_END = {"INVALIDRANGE", "416"}
TAKEN = {"PRECONDITIONFAILED", "412", "CONDITIONALREQUESTCONFLICT", "409"}


class Answer(NamedTuple):
    """An object, or a range of it, that the server has begun to send."""

    body: Any
    total: int  # bytes of the whole object


class S3Storage:
    """See `Storage`. Every method is safe in threads; a process that was forked needs an object of its own."""

    def __init__(self, root: str) -> None:
        self.bucket, _, self.prefix = root.partition("/")

    @cached_property
    def client(self) -> Any:
        """The S3 client, once the bucket is known to exist: some servers create a mistyped one on the first write."""
        client = s3_client()
        self._list_one(client)
        return client

    def check(self, write: bool) -> None:
        self._list_one(self.client)

    def _list_one(self, client: Any) -> None:
        client.list_objects_v2(Bucket=self.bucket, Prefix=self._below(""), MaxKeys=1)

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def _below(self, folder: str) -> str:
        key = self._key(folder)
        return key and f"{key}/"

    def _object(self, path: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(path)}

    def open(self, path: str, start: int, end: int) -> Answer | None:
        """The bytes `[start, end)` of an object; None where it has none from `start` on."""
        try:
            answer = self.client.get_object(**self._object(path), Range=f"bytes={start}-{end - 1}")
        except ClientError as error:
            if s3_code(error) in PAST_THE_END:
                return None
            raise
        total = answer.get("ContentRange", "").rpartition("/")[2]
        return Answer(answer["Body"], int(total or answer["ContentLength"]))

    def read(self, path: str, most: int) -> bytes | None:
        try:
            answer = self.open(path, 0, most)
        except ClientError as error:
            if s3_code(error) in ABSENT:
                return None
            raise
        return answer.body.read() if answer else b""

    def exists(self, path: str) -> bool:
        # Not a HEAD, whose answer cannot say why it is refused.
        key = self._key(path)
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=key, MaxKeys=1)
        return any(one["Key"] == key for one in found.get("Contents", ()))

    def put(self, path: str, data: bytes, **conditions: str) -> None:
        # A file, as botocore's timeout is one of every block of a file, and of all bytes of a text together.
        self.client.put_object(**self._object(path), Body=io.BytesIO(data), **conditions)

    def upload(self, source: Path, path: str) -> None:
        with source.open("rb") as file:
            self.client.put_object(**self._object(path), Body=file)

    def create(self, path: str, data: bytes) -> bool:
        try:
            self.put(path, data, IfNoneMatch="*")
        except ClientError as error:
            if s3_code(error) in TAKEN:
                return False
            raise
        return True

    def look(self, folder: str) -> Iterator[Found]:
        skipped = len(self._below(""))
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._below(folder))
        for page in pages:
            for one in page.get("Contents", ()):
                if not one["Key"].endswith("/"):  # a marker, which some servers and tools keep for a folder
                    yield Found(one["Key"][skipped:], one["Size"], one["LastModified"])

    def named(self, folder: str, name: str, depth: int) -> list[str]:
        tail, slashes = f"/{name}", folder.count("/") + 1 + depth
        paths = (found.path for found in self.look(folder))
        return [path for path in paths if path.endswith(tail) and path.count("/") == slashes]

    def delete(self, paths: list[str]) -> None:
        if len(paths) == 1:
            self.client.delete_object(**self._object(paths[0]))
            return
        keys = [{"Key": self._key(path)} for path in paths]
        answer = self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})
        for error in answer.get("Errors", ()):
            raise ClientError({"Error": error}, "DeleteObjects")

    def begin_upload(self, path: str) -> str:
        """Begin a multipart upload and return its id."""
        return self.client.create_multipart_upload(**self._object(path))["UploadId"]

    def upload_part(self, path: str, upload: str, number: int, data: bytes) -> dict[str, Any]:
        """Send a part, counted from 1, and return what `finish_upload` must be told of it."""
        sent = self.client.upload_part(**self._object(path), UploadId=upload, PartNumber=number, Body=io.BytesIO(data))
        return {"PartNumber": number, "ETag": sent["ETag"]}

    def finish_upload(self, path: str, upload: str, parts: list[dict[str, Any]]) -> None:
        """Make an object of the parts."""
        try:
            self.client.complete_multipart_upload(
                **self._object(path), UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except ClientError as error:
            # Repeated, because the answer was lost: the server has done it, and knows the upload no more.
            if s3_code(error) not in NO_UPLOAD or not self.exists(path):
                raise

    def half_uploads(self) -> list[HalfUpload]:
        """The multipart uploads below the root that were neither finished nor given up."""
        skipped = len(self._below(""))
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket)
        return [
            HalfUpload(one["Key"][skipped:], one["UploadId"], one["Initiated"])
            for page in pages
            for one in page.get("Uploads", ())
            if one["Key"].startswith(self._below(""))
        ]

    def give_up_upload(self, path: str, upload: str) -> None:
        """Make the server forget a multipart upload and what it holds of it."""
        try:
            self.client.abort_multipart_upload(**self._object(path), UploadId=upload)
        except ClientError as error:
            if s3_code(error) not in NO_UPLOAD | ABSENT:
                raise
