"""Joint retraining of models that share weights: starting weights, distillation, and evaluation."""
