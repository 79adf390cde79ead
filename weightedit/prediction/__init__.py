"""Predicting something of a network from its weights; the predictor itself is in `predictor`."""

from weightedit.prediction.predictor import WeightSpacePredictor as WeightSpacePredictor
