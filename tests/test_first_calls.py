"""Shape checks of the tests: in force in the first calls of a test, of every kind."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from circuitcut.training.objectives import kl_to_reference
from tests import first_calls

Square = Float[Tensor, "n n"]
WRONG: Any = torch.zeros(2, 3)
check = jaxtyped(typechecker=beartype)


@check
def of_module(x: Square) -> None:
    pass


@check
class Holder:
    @check
    def method(self, x: Square) -> None:
        pass

    @classmethod
    @check
    def of_class(cls, x: Square) -> None:
        pass

    @property
    @check
    def value(self) -> Square:
        return WRONG


@check
@dataclass
class Record:
    x: Square


def inner(x: Square) -> None:
    @check
    def function(x: Square) -> None:
        pass

    function(x)


CALLS = [of_module, Holder().method, Holder.of_class, Record, inner]
CALLS += [lambda _: Holder().value]


@pytest.mark.parametrize("call", CALLS)
def test_the_first_calls_are_checked_and_later_ones_are_not(call: Any):
    for _ in range(2):
        for _ in range(first_calls.N_CHECKED):
            with pytest.raises(TypeCheckError):
                call(WRONG)
        call(WRONG)
        first_calls.forget()


def test_functions_of_the_project_are_checked():
    with pytest.raises(TypeCheckError, match="kl_to_reference"):
        kl_to_reference(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2))
