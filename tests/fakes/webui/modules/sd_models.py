"""The model that is loaded, without loading one."""

from modules import shared


class ModelData:
    @property
    def sd_model(self):
        return shared.loaded.sd_model


model_data = ModelData()
