"""Runs pliant artifacts with numpy and onnxruntime, without torch.

>>> from pliant_runtime import load                 # doctest: +SKIP
>>> family = load("fashion.pliant")                 # doctest: +SKIP
>>> family.run(images, budget_ms=2.0)               # doctest: +SKIP
"""

from pliant_runtime.errors import ArtifactError as ArtifactError
from pliant_runtime.family import Family as Family
from pliant_runtime.family import load as load
from pliant_runtime.grammar import FORMAT as FORMAT
from pliant_runtime.grammar import VERSION as VERSION
from pliant_runtime.grammar import Entry as Entry
from pliant_runtime.grammar import Program as Program
from pliant_runtime.grammar import Signature as Signature

__version__ = "0.1.0"
