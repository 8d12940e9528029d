"""Labelled images from any source: decoded once, checked, split, and shared by all trials of a machine."""

from raystudy.data.filesystem import is_uri
from raystudy.data.of_study import open_data
from raystudy.data.pipeline import prepare
from raystudy.data.prepared import BadImage, ClassCount, DataSummary, PreparedData, Splits, summarise
from raystudy.data.selection import Selected, Selection, category_order, select
from raystudy.data.source import check_source, split_source
from raystudy.data.splits import class_orders, fraction_subset, nesting_order

__all__ = [
    "BadImage",
    "ClassCount",
    "DataSummary",
    "PreparedData",
    "Selected",
    "Selection",
    "Splits",
    "category_order",
    "check_source",
    "class_orders",
    "fraction_subset",
    "is_uri",
    "nesting_order",
    "open_data",
    "prepare",
    "select",
    "split_source",
    "summarise",
]
