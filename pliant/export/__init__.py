"""Export and measure: modules become checked ONNX, and sub-networks are timed on the machine at hand."""

from pliant.export.hardware import Hardware as Hardware
from pliant.export.hardware import hardware as hardware
from pliant.export.onnx_model import OnnxModel as OnnxModel
from pliant.export.timing import Comparison as Comparison
from pliant.export.timing import Latency as Latency
from pliant.export.to_onnx import to_onnx as to_onnx
