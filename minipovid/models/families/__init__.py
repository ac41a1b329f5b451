"""WHICH MODEL: one file per kind of vision-language model, named by config.json's `model_type`."""
