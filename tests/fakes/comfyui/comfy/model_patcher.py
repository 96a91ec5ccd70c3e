"""A model with its patches, which clones share the weights of."""

import torch


class ModelPatcher:
    load_device = torch.device("cpu")

    def __init__(self, model):
        self.model, self.model_options, self.wrappers = model, {}, {}

    def clone(self):
        made = ModelPatcher(self.model)
        made.model_options = {**self.model_options}
        made.wrappers = {
            kind: {key: list(part) for key, part in by_key.items()}
            for kind, by_key in self.wrappers.items()
        }
        return made

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind, key):
        self.wrappers.get(kind, {}).pop(key, None)

    def get_model_object(self, name):
        return getattr(self.model, name)
