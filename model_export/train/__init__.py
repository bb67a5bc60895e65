"""Training the generator: batches, loop, checkpoints, validation."""

from model_export.train.catalog import TrainingCatalog
from model_export.train.config import TrainConfig
from model_export.train.stage import TrainedGenerator, train

__all__ = ["TrainConfig", "TrainedGenerator", "TrainingCatalog", "train"]
