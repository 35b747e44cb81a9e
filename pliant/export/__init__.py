"""Export and measure: modules become checked ONNX, and sub-networks are timed on the machine at hand."""

from pliant.export.hardware import DescribedHardware as DescribedHardware
from pliant.export.hardware import Hardware as Hardware
from pliant.export.hardware import hardware as hardware
from pliant.export.latency_model import LatencyModel as LatencyModel
from pliant.export.network_text import network_text as network_text
from pliant.export.onnx_model import OnnxModel as OnnxModel
from pliant.export.probes import ProbeSettings as ProbeSettings
from pliant.export.probes import probe_family as probe_family
from pliant.export.timing import Comparison as Comparison
from pliant.export.timing import Latency as Latency
from pliant.export.to_onnx import to_onnx as to_onnx
