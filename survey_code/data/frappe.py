"""Frappe_x1: will this user use this app, in this context?

Baltrunas et al. (2015); split and negatives of He and Chua (2017), as published
in the BARS benchmark.  For research only, not to be redistributed.
"""

from __future__ import annotations

import io

import numpy as np

from survey_code.data.files import DataFile, read_data
from survey_code.data.tasks import ClickData, ClickRows

FIELDS = {
    "user": 957,
    "item": 4082,
    "daytime": 7,
    "weekday": 7,
    "isweekend": 2,
    "homework": 3,
    "cost": 2,
    "weather": 9,
    "country": 80,
    "city": 233,
}
ROWS = {"train": 202_027, "valid": 57_722, "test": 28_860}

FRAPPE_ADDRESS = "https://huggingface.co/datasets/reczoo/Frappe_x1/resolve/main/{}"
FRAPPE_EDITIONS = {
    "train": {
        "ba7306e6c4fc19dd2cd84f2f0596d158": "published",
        "e6c0fa27411fa70cdb4eb5780498f540bebaeb69b65943a1943c548a1f040d6e": "rebuilt",
    },
    "valid": {
        "72b6a89fee413def6936bf0ab0be30b8c5aa200bd1d1fc533aca6eb0d3dd98e2": "published"
    },
    "test": {
        "f09423427a86efc87f9da3b7a2eb9bdd77f117e13458b00400e9d9fc8ac4f6d7": "published"
    },
}


def load_frappe() -> ClickData:
    """Frappe_x1 with its published split.

    Returns
    -------
    ClickData
        10 fields, 5,382 ids; 202,027 / 57,722 / 28,860 rows.  The name ends in
        "(rebuilt train)" where the training file is the one whose negative
        items were drawn anew.

    Raises
    ------
    ValueError, FileNotFoundError
        See `survey_code.data.files.read_data`.
    """
    parts, source = {}, {}
    for part in ROWS:
        name = f"{part}.csv"
        file = DataFile(
            "frappe_x1", name, FRAPPE_ADDRESS.format(name), FRAPPE_EDITIONS[part]
        )
        content, source[part] = read_data(file)
        parts[part] = parse_rows(content, part)
    rebuilt = source["train"]["edition"] == "rebuilt"
    return ClickData(
        "frappe_x1 (rebuilt train)" if rebuilt else "frappe_x1",
        tuple(FIELDS),
        np.concatenate([[0], np.cumsum(list(FIELDS.values()))]),
        parts["train"],
        parts["valid"],
        parts["test"],
        source=source,
    )


def parse_rows(content: bytes, part: str) -> ClickRows:
    """Label and ten ids of each line of the CSV."""
    import pandas as pd

    table = pd.read_csv(io.BytesIO(content))
    expected = (ROWS[part], ["label", *FIELDS])
    if (len(table), list(table.columns)) != expected:
        raise ValueError(
            f"frappe {part}: {len(table)} rows with columns {list(table.columns)}, "
            f"expected {expected[0]} with {expected[1]}"
        )
    ids = table[list(FIELDS)].to_numpy(dtype=np.int64)
    return ClickRows(ids, table["label"].to_numpy(dtype=np.float32))
