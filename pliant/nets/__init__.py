"""Reference architectures: plain PyTorch modules that know nothing of pliant.

Every factory takes the per-sample input `shape` and the number of `classes` first; all its arguments are JSON values,
so that a run folder can name a network by factory and arguments.
"""

from pliant.nets.dwsep import dwsep as dwsep
from pliant.nets.gpt import gpt as gpt
from pliant.nets.lstm import lstm as lstm
from pliant.nets.mlp import mlp as mlp
from pliant.nets.resnet import resnet as resnet
from pliant.nets.resnet import resnet8 as resnet8
from pliant.nets.resnet import resnet20 as resnet20
from pliant.nets.resnet import resnet56 as resnet56
from pliant.nets.unet import unet as unet
from pliant.nets.vit import vit as vit

__all__ = ["dwsep", "gpt", "lstm", "mlp", "resnet", "resnet8", "resnet20", "resnet56", "unet", "vit"]
