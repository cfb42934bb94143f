"""Pure functions of tensors, one file per paper's losses. Nothing here knows a model, a config or detectron2."""
