"""GenerationInterface: what a generator of one's own must define."""

from __future__ import annotations

import pytest

from nemo_rl.config import generation
from nemo_rl.data import interfaces as data
from nemo_rl.models.generation import interfaces


def test_shapes_and_configuration_are_the_canonical_objects() -> None:
    assert interfaces.GenerationConfig is generation.GenerationConfig
    assert interfaces.GenerationDatumSpec is data.GenerationDatumSpec
    assert interfaces.GenerationOutputSpec is data.GenerationOutputSpec


def test_a_generator_defines_three_methods() -> None:
    class Mute(interfaces.GenerationInterface):
        def generate(self, data, greedy):
            return data

    with pytest.raises(TypeError, match="finish_generation.*prepare_for_generation"):
        Mute()


def test_a_generator_of_ones_own() -> None:
    class Echo(interfaces.GenerationInterface):
        ready = False

        def generate(self, data, greedy):
            assert self.ready
            return data

        def prepare_for_generation(self):
            self.ready = True

        def finish_generation(self):
            self.ready = False

    echo = Echo()
    echo.prepare_for_generation()
    assert echo.generate("prompt", greedy=True) == "prompt"
    echo.finish_generation()
    assert not echo.ready
