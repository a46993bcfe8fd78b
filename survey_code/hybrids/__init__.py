"""Hybrids: two ways to compress at once, and so layouts within layouts."""

from survey_code.hybrids.cerp import CERP as CERP, CERPOptions as CERPOptions
from survey_code.hybrids.fields import (
    NestedFields as NestedFields,
    NestedOptions as NestedOptions,
)
from survey_code.hybrids.nested import (
    round_layout as round_layout,
    share_layout as share_layout,
)
