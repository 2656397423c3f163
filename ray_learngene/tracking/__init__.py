"""Experiment trackers behind one interface: TensorBoard, MLflow and W&B, each imported when it is used."""
