"""How a model's output and noise levels are meant."""

import torch


class EPS:
    pass


class V_PREDICTION(EPS):
    pass


class CONST:
    pass


def training_sigmas(steps=1000):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    products = (1 - betas).cumprod(0)
    return ((1 - products) / products).sqrt().float()


class Discrete(V_PREDICTION):
    def __init__(self):
        self.sigmas = training_sigmas()


class DiscreteEPS(EPS):
    def __init__(self):
        self.sigmas = training_sigmas()


class FlowSampling(CONST):
    def __init__(self):
        self.sigmas = torch.arange(1, 1001) / 1000
