"""Predictors: what a network that was not measured would measure, and how far off that may be.

`fit_ridge` (fast; what the default searcher uses), `fit_process` and `fit_boosting` take the encoding of configs, one
space at a time; `fit_text` takes the text of any network, of any space (`pliant.export.network_text`). What they return
offers `mean`, `std`, `interval` and `draw`; `quality` judges any of them on measurements that were left out.
"""

from pliant.search.predictors.boosting import fit_boosting as fit_boosting
from pliant.search.predictors.contract import fit_ridge as fit_ridge
from pliant.search.predictors.process import fit_process as fit_process
from pliant.search.predictors.quality import Quality as Quality
from pliant.search.predictors.quality import quality as quality
from pliant.search.predictors.text import fit_text as fit_text

__all__ = ["Quality", "fit_boosting", "fit_process", "fit_ridge", "fit_text", "quality"]
