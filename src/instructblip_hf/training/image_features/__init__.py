"""Features of the frozen vision tower, computed once and kept on disk: docs/fast_training.md."""

from .batches import FeatureReader, ImageFeatures
from .store import FeatureStore
from .tower import FrozenTower


__all__ = ["FeatureReader", "FeatureStore", "FrozenTower", "ImageFeatures"]
