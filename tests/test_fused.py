import pytest
import torch

from ddchallenge.scoring import dsa
from ddchallenge.scoring.draws import Draw, Generators
from ddchallenge.scoring.fused import NUMBERS, apply_map, map_of


@pytest.mark.parametrize("choice", range(6), ids=[family.name for family in dsa.FAMILIES])
@pytest.mark.parametrize("size", [8, 31, 64])
def test_the_map_of_a_family_does_what_the_family_does(choice, size):
    """One map for all six, against each family by itself on the same numbers: equal up to the
    rounding of float32, and something is changed."""
    images = torch.randn(40, 3, size, size, generator=torch.Generator().manual_seed(1))
    family = dsa.FAMILIES[choice]
    numbers = family.draw(40, size, Generators(7, torch.device("cpu")))
    maps = map_of(Draw(choice, numbers), 40, size)
    fused = apply_map(images, maps)

    assert maps.shape == (40, NUMBERS)
    torch.testing.assert_close(fused, family.apply(images, numbers), atol=2e-4, rtol=0)
    assert not torch.allclose(fused, images, atol=1e-2)
