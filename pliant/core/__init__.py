"""Ground floor: errors, facts, configurations, spaces, atomic files and seeds. Imports nothing above it."""

from pliant.core.calls import Inputs as Inputs
from pliant.core.calls import Output as Output
from pliant.core.calls import as_call as as_call
from pliant.core.calls import call as call
from pliant.core.calls import copied as copied
from pliant.core.calls import main_output as main_output
from pliant.core.calls import make_output as make_output
from pliant.core.calls import map_tensors as map_tensors
from pliant.core.calls import tensors_of as tensors_of
from pliant.core.config import Config as Config
from pliant.core.errors import PliantError as PliantError
from pliant.core.facts import Facts as Facts
from pliant.core.files import atomic_folder as atomic_folder
from pliant.core.files import read_json as read_json
from pliant.core.files import sha256_file as sha256_file
from pliant.core.files import write_atomic as write_atomic
from pliant.core.files import write_json as write_json
from pliant.core.knob import Knob as Knob
from pliant.core.names import resolve as resolve
from pliant.core.seeds import seeded as seeded
from pliant.core.selection import Selection as Selection
from pliant.core.space import Space as Space
from pliant.core.space import either as either
from pliant.core.space import nested as nested
from pliant.core.space import optional as optional
from pliant.core.space import repeated as repeated
