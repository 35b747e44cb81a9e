"""The separate distribution `pliant_runtime` under pliant's own name: runs artifacts without torch."""

from pliant_runtime import FORMAT as FORMAT
from pliant_runtime import VERSION as VERSION
from pliant_runtime import ArtifactError as ArtifactError
from pliant_runtime import Entry as Entry
from pliant_runtime import Family as Family
from pliant_runtime import Program as Program
from pliant_runtime import Signature as Signature
from pliant_runtime import load as load
