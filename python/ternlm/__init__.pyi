from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

__version__: str
_Path = str | PathLike[str]
_Group = int | Literal["tensor"]
_Density = Literal["base3", "2bit"]

class TernlmError(ValueError):
    file: str | None
    field: str | None
    found: str | None
    wanted: str | None

class _Generated(TypedDict):
    tokens: list[int]
    text: str
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    proposed: int
    accepted: int
    stopped: bool

def project(latents: NDArray[np.float32], group: _Group = 128) -> TernaryMatrix: ...
def verify(path: _Path) -> dict[str, Any]: ...
def train(
    recipe: _Path,
    *,
    data: _Path | Sequence[_Path] = (),
    init: _Path | None = None,
    out: _Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
    on_metrics: Callable[[dict[str, float]], Any] | None = None,
) -> bool: ...

class TernaryMatrix:
    @staticmethod
    def from_values(values: NDArray[np.float32], group: _Group = 128) -> TernaryMatrix: ...
    @staticmethod
    def from_parts(
        trits: NDArray[np.int8], scales: NDArray[np.float32], group: _Group = 128
    ) -> TernaryMatrix: ...
    @staticmethod
    def unpack(
        data: bytes, shape: tuple[int, int], group: _Group = 128, density: _Density = "base3"
    ) -> TernaryMatrix: ...
    def pack(self, density: _Density = "base3") -> bytes: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def group(self) -> int: ...
    def trits(self) -> NDArray[np.int8]: ...
    def scales(self) -> NDArray[np.float32]: ...
    def values(self) -> NDArray[np.float32]: ...
    def linear(self, x: NDArray[np.float32], inputs: Literal["f32", "int8"] = "f32") -> NDArray[np.float32]: ...

class Model:
    @staticmethod
    def load(path: _Path, precision: Literal["f32", "int8"] = "f32") -> Model: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def architecture(self) -> str: ...
    def names(self) -> list[str]: ...
    def matrix(self, name: str) -> TernaryMatrix: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]: ...
    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        ignore_eos: bool = False,
        on_text: Callable[[str], Any] | None = None,
    ) -> _Generated: ...
