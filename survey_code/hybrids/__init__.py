"""Hybrids: two ways to compress at once, and so layouts within layouts."""

from survey_code.hybrids.cerp import CERP as CERP, CERPOptions as CERPOptions
