"""How the files of a report are written: JSON that every reader takes, and each file whole or not at all."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.system.files import write_file


def save_files(out: Path, files: Mapping[str, str]) -> None:
    """Write each file (path in ``out`` → text); others that are there stay.

    Raises:
        OSError: the disk is full, which the command line explains.
        WorkbenchError: anything else that the file system refuses.
    """
    try:
        for name, content in files.items():
            write_file(out / name, content, errors="replace")  # half a surrogate pair, which JSON can hold, is no text
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise WorkbenchError(f"the report cannot be written to {out}: a file is in the way; name a folder.") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            error.filename = error.filename or str(out)
            raise
        raise WorkbenchError(
            f"the report cannot be written to {out}: {error.strerror or error}; name a folder that may be written to."
        ) from None


def json_text(value: Any) -> str:
    """Readable JSON, which has no NaN: see :func:`finite`."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Plain values with null for what is not a number, and text for keys; tuples become lists."""
    if isinstance(value, dict):
        return {str(key): finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
