"""The files of a store that are no artefacts, by their path: tables, texts and JSON, such as those of sweeps."""

from __future__ import annotations

import io
from typing import Any

import pyarrow
import pyarrow.parquet

from ray_learngene.config.documents import parse_object
from ray_learngene.errors import UserError
from ray_learngene.io.errors import clear_errors
from ray_learngene.io.objects import Objects
from ray_learngene.store.manifest import check_relative


class StoreFiles:
    """Reads and writes whole files below a store's root."""

    objects: Objects

    def write_table(self, path: str, table: pyarrow.Table) -> None:
        """Write a table as Parquet to a path below the store, replacing as a whole what was there."""
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, buffer)
        self.objects.put(check_path(path), buffer.getvalue().to_pybytes())

    def read_table(self, path: str) -> pyarrow.Table:
        """Read the Parquet table at a path below the store.

        Raises:
            UserError: There is none, or it is not Parquet.
        """
        table = self.find_table(path)
        if table is None:
            raise UserError(f"there is no table {self.objects.uri_of(path)}: check the name")
        return table

    def find_table(self, path: str) -> pyarrow.Table | None:
        """Read the Parquet table at a path below the store, None where there is none.

        Raises:
            UserError: It is not Parquet.
        """
        data = self.objects.read(check_path(path))
        with clear_errors(self.objects.uri_of(path)):
            return None if data is None else pyarrow.parquet.read_table(io.BytesIO(data))

    def has(self, path: str) -> bool:
        """Return whether there is something at a path below the store."""
        return self.objects.exists(check_path(path))

    def write_text(self, path: str, text: str) -> None:
        """Write a text to a path below the store, replacing as a whole what was there."""
        self.objects.put(check_path(path), text.encode())

    def create_text(self, path: str, text: str) -> bool:
        """Write a text to a path below the store if nothing is there; False where something is."""
        return self.objects.create(check_path(path), text.encode())

    def read_text(self, path: str) -> str | None:
        """Return the text at a path below the store, None where there is none.

        Raises:
            UserError: it is no text.
        """
        data = self.objects.read(check_path(path))
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError:
            raise UserError(f"{self.objects.uri_of(path)} is damaged (not UTF-8 text): remove it") from None

    def read_object(self, path: str, instead: str) -> dict[str, Any] | None:
        """Return the JSON object at a path below the store, None where there is none.

        Args:
            instead: What the user can do where it is damaged.

        Raises:
            UserError: it is damaged.
        """
        data = self.objects.read(check_path(path))
        try:
            return None if data is None else parse_object(data)
        except ValueError as error:
            raise UserError(f"{self.objects.uri_of(path)} is damaged ({error}): {instead}") from None

    def remove_tree(self, path: str) -> None:
        """Delete every object below a path of the store, such as the state of a run."""
        self.objects.delete_many(self.objects.find(check_path(path)))


def check_path(path: str) -> str:
    """Return a path if it stays below the store's root, else raise UserError."""
    try:
        return check_relative(path)
    except ValueError as error:
        raise UserError(f"{error}: write folder/file, below the store") from error
