"""Every test runs on one thread, without a network, and the same way each time."""

import os

import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)
# a loaded machine must not fail a test, nor must luck
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
