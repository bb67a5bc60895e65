"""How good the slates are: metrics, baselines, intervals, and the report."""

from model_export.evaluate.config import EvaluateConfig
from model_export.evaluate.evaluation import evaluate
from model_export.evaluate.recommender import Recommender, Seeds
from model_export.evaluate.report import Report

__all__ = ["EvaluateConfig", "Recommender", "Report", "Seeds", "evaluate"]
