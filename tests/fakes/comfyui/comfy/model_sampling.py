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


class Table:
    def __init__(self):
        self.sigmas = training_sigmas()

    def timestep(self, sigma):
        """The nearest one of the table, as the host has it."""
        return (sigma.log()[:, None] - self.sigmas.log()).abs().argmin(dim=1)


class Discrete(Table, V_PREDICTION):
    pass


class DiscreteEPS(Table, EPS):
    pass


class FlowSampling(CONST):
    def __init__(self):
        self.sigmas = torch.arange(1, 1001) / 1000
