"""Data: the Dataset contract, data sets by name, and files and arrays as data sets."""

from pliant.data.dataset import Dataset as Dataset
from pliant.data.dataset import Metric as Metric
from pliant.data.dataset import Split as Split
from pliant.data.dense import denoising as denoising
from pliant.data.load import load as load
from pliant.data.load import names as names
from pliant.data.preprocessing import apply as apply

__all__ = ["Dataset", "Metric", "Split", "apply", "denoising", "load", "names"]
