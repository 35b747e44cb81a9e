"""One-pass networks: all widths, exactly, in one forward."""

from pliant.elastic.onepass.build import one_pass as one_pass
from pliant.elastic.onepass.network import OnePass as OnePass
