"""What a model receives beside the latent."""


class CONDRegular:
    def __init__(self, cond):
        self.cond = cond


class CONDNoiseShape(CONDRegular):
    pass
