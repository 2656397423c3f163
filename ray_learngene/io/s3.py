"""Objects below a bucket's prefix, by s3fs: one request a method, but for listings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_learngene.errors import UserError
from ray_learngene.io.backend import Found, IncompleteUpload, named_in
from ray_learngene.io.errors import ClientError, s3_code
from ray_learngene.io.options import options_for

if TYPE_CHECKING:
    from ray_learngene.io.s3_bytes import Stream
    from ray_learngene.io.s3_client import S3Client

ABSENT = {"NOSUCHKEY", "404"}
NO_UPLOAD = {"NOSUCHUPLOAD"}
TAKEN = {"PRECONDITIONFAILED", "412"}
CONFLICT = {"CONDITIONALREQUESTCONFLICT", "409"}  # another request for the same object was under way
MARKERS = ("ContinuationToken", "KeyMarker", "UploadIdMarker")  # where the next page of a listing begins
FINISH_SECONDS = 600.0  # that S3 may take to make one object of many parts


class S3Storage:
    """The storage at a bucket's prefix. Every method is safe in threads; a forked process needs its own."""

    def __init__(self, root: str) -> None:
        self.bucket, _, self.prefix = root.partition("/")
        self.options = options_for(f"s3://{root}")

    @cached_property
    def client(self) -> S3Client:
        """The S3 client, for reading: it asks for nothing that was not asked of it."""
        from ray_learngene.io.s3_client import S3Client  # only here: s3fs takes a second, and a local path needs none

        return S3Client(self.options)

    @cached_property
    def writer(self) -> S3Client:
        """The same, once the bucket is known to exist: some servers create a mistyped one on the first write."""
        self._list_one(self.client)
        return self.client

    def check(self, write: bool) -> None:
        self._list_one(self.client)
        self.writer = self.client  # the bucket is there

    def _list_one(self, client: S3Client) -> None:
        client.call("list_objects_v2", Bucket=self.bucket, Prefix=self._below(""), MaxKeys=1)

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def _below(self, folder: str) -> str:
        key = self._key(folder)
        return key and f"{key}/"

    def _object(self, path: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self._key(path)}

    def stream(self, path: str, start: int, end: int, piece_bytes: int) -> Stream:
        """Return the bytes `[start, end)` of an object while they arrive; none where it has none from `start` on."""
        return self.client.stream(start, end, piece_bytes, **self._object(path))

    def read(self, path: str, most: int) -> bytes | None:
        try:
            return self.client.read(most, **self._object(path))
        except ClientError as error:
            if s3_code(error) in ABSENT:
                return None
            raise

    def exists(self, path: str) -> bool:
        # Not a HEAD, whose answer cannot say why it is refused.
        key = self._key(path)
        found = self.client.call("list_objects_v2", Bucket=self.bucket, Prefix=key, MaxKeys=1)
        return any(one["Key"] == key for one in found.get("Contents", ()))

    def put(self, path: str, data: bytes, **conditions: str) -> None:
        self.writer.send("put_object", data, **self._object(path), **conditions)

    def upload(self, source: Path, path: str) -> None:
        self.put(path, source.read_bytes())

    def create(self, path: str, data: bytes) -> bool:
        try:
            self.put(path, data, IfNoneMatch="*")
        except ClientError as error:
            code = s3_code(error)
            if code in TAKEN or (code in CONFLICT and self.exists(path)):
                return False
            raise
        return True

    def look(self, folder: str) -> Iterator[Found]:
        skipped = len(self._below(""))
        for one in self._listed("list_objects_v2", "Contents", Prefix=self._below(folder)):
            if not one["Key"].endswith("/"):  # a marker, which some servers and tools keep for a folder
                yield Found(one["Key"][skipped:], one["Size"], one["LastModified"])

    def _listed(self, method: str, what: str, **where: Any) -> Iterator[dict[str, Any]]:
        """Yield everything that a listing finds, page by page."""
        while True:
            page = self.client.call(method, Bucket=self.bucket, **where)
            yield from page.get(what, ())
            if not page.get("IsTruncated"):
                return
            following = {name: page[f"Next{name}"] for name in MARKERS if f"Next{name}" in page}
            if following.items() <= where.items():  # else it would be asked for the same page for ever
                raise UserError(f"{method} of bucket {self.bucket}: the server says that there is more, but not where")
            where |= following

    def named(self, folder: str, name: str, depth: int) -> list[str]:
        return named_in(self.look(folder), folder, name, depth)

    def delete(self, paths: list[str]) -> None:
        if len(paths) == 1:
            self.writer.call("delete_object", **self._object(paths[0]))
            return
        keys = [{"Key": self._key(path)} for path in paths]
        answer = self.writer.call("delete_objects", Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})
        for error in answer.get("Errors", ()):
            raise ClientError({"Error": error}, "DeleteObjects")

    def begin_upload(self, path: str) -> str:
        """Begin a multipart upload and return its id."""
        upload: str = self.writer.call("create_multipart_upload", **self._object(path))["UploadId"]
        return upload

    def upload_part(self, path: str, upload: str, number: int, data: bytes) -> dict[str, Any]:
        """Send a part, counted from 1, and return what `finish_upload` must be told of it."""
        sent = self.writer.send("upload_part", data, **self._object(path), UploadId=upload, PartNumber=number)
        return {"PartNumber": number, "ETag": sent["ETag"]}

    def finish_upload(self, path: str, upload: str, parts: list[dict[str, Any]]) -> None:
        """Make an object of the parts."""
        which = {**self._object(path), "UploadId": upload, "MultipartUpload": {"Parts": parts}}
        try:
            self.client.call("complete_multipart_upload", seconds=FINISH_SECONDS, **which)
        except ClientError as error:
            # Repeated, because the answer was lost: the server has done it, and knows the upload no more.
            if s3_code(error) not in NO_UPLOAD or not self.exists(path):
                raise

    def incomplete_uploads(self) -> list[IncompleteUpload]:
        """Return the multipart uploads below the root that were neither finished nor given up."""
        skipped = len(self._below(""))
        return [
            IncompleteUpload(one["Key"][skipped:], one["UploadId"], one["Initiated"])
            for one in self._listed("list_multipart_uploads", "Uploads")
            if one["Key"].startswith(self._below(""))
        ]

    def give_up_upload(self, path: str, upload: str) -> None:
        """Make the server forget a multipart upload and what it holds of it."""
        try:
            self.client.call("abort_multipart_upload", **self._object(path), UploadId=upload)
        except ClientError as error:
            if s3_code(error) not in NO_UPLOAD | ABSENT:
                raise
