"""Training: the loop with checkpoints, recipes, losses, metrics, evaluation, and optimizer steps on slices."""

from pliant.learn.callbacks import Callback as Callback
from pliant.learn.callbacks import State as State
from pliant.learn.evaluate import evaluate as evaluate
from pliant.learn.evaluate import per_class as per_class
from pliant.learn.evaluate import predict as predict
from pliant.learn.history import EpochRecord as EpochRecord
from pliant.learn.history import History as History
from pliant.learn.history import StepRecord as StepRecord
from pliant.learn.losses import cross_entropy as cross_entropy
from pliant.learn.losses import loss_function as loss_function
from pliant.learn.losses import mse as mse
from pliant.learn.losses import next_token as next_token
from pliant.learn.metrics import Measure as Measure
from pliant.learn.modes import device_of as device_of
from pliant.learn.modes import in_mode as in_mode
from pliant.learn.recipe import Batch as Batch
from pliant.learn.recipe import HasRecipe as HasRecipe
from pliant.learn.recipe import LossFn as LossFn
from pliant.learn.recipe import Plain as Plain
from pliant.learn.recipe import Recipe as Recipe
from pliant.learn.settings import Settings as Settings
from pliant.learn.slices import Slices as Slices
from pliant.learn.slices import step_slices as step_slices
from pliant.learn.train import train as train
