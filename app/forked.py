"""The imports of the process from which workers are forked. Imported there alone."""

import gc

import torch

from app import pictures, traces  # noqa: F401

torch.set_num_threads(1)
gc.freeze()  # a collection in a fork would touch, and so copy, all that it shares with this process
