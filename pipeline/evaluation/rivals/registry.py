"""The rivals that the bottleneck is compared with: an entry has all that plan, records, tables and figures need."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection

import numpy as np

from vidpress.pipeline.evaluation.rivals import answers, codecs, quantizers

# What a rival is fitted to, as records call it: the last activations of a network without a rate, or its input.
ACTIVATIONS = "activations"
FEATURES = "features"

# Okabe and Ito's colours, which the colour-blind can tell apart.
_GREEN, _SKY, _GREY, _PINK = "#009E73", "#3A9BD1", "#6E6E6E", "#B0578D"


class Sample:
    """What codecs are fitted to.

    Attributes:
      z: float32[num_examples, num_dims].
      head: Kernel and bias of the head that reads them, if they are activations and it is linear.
    """

    def __init__(self, z: np.ndarray, head: tuple[np.ndarray, np.ndarray] | None = None):
        self.z = z
        self.head = head

    @functools.cached_property
    def components(self) -> codecs.PrincipalComponents:
        """All principal components of `z`: they take long, and more than one codec is made of them."""
        return codecs.fit_principal_components(self.z)

    def quantizer(
        self, fit: Callable[[np.ndarray, int], codecs.Codec], num_bytes: int, components_per_byte: int
    ) -> codecs.Codec:
        """Return a quantizer of the first principal components: see `quantizers.fit_to_components`."""
        return quantizers.fit_to_components(fit, self.z, num_bytes, self.components, components_per_byte)


@dataclasses.dataclass(frozen=True)
class Rival:
    """What could be stored instead of the bottleneck's codes, in all settings that are measured.

    Attributes:
      name: Its name in records and options of points. It never changes: finished records are found by it.
      title: Its name in tables.
      label: Its name in figures.
      text: What it is, a sentence for the page.
      fit: Makes the codec from a sample and a size; the size is 0 if there is no choice.
      colour: The colour of its curve.
      marker: The marker of its points.
      line: The line style of its curve on activations; on the input all are dashed.
      sizes: The sizes that are measured, in `unit`s; empty if there is no choice.
      small_sizes: Further sizes, for features of few dimensions, such as those of images.
      unit: What its sizes count.
      units: Its plural, if that has not just an s.
      multiple: What sizes must be multiples of.
      within_dims: Whether no size can be larger than the number of dimensions: of classes, for what gives scores.
      sources: Which of `ACTIVATIONS` and `FEATURES` it is fitted to.
      paper: Whether it is one of the paper's baselines, which only the network's own head reads.
      gives_scores: Whether what it restores are the scores of the task's classes, which need no head.
      slow: Whether fitting it takes long. Then it is measured on the activations of the first seed alone.
      on_images: Whether it is measured on images, too.
    """

    name: str
    title: str
    label: str
    text: str
    fit: Callable[[Sample, int], codecs.Codec]
    colour: str
    marker: str
    line: str = "-"
    sizes: tuple[int, ...] = ()
    small_sizes: tuple[int, ...] = ()
    unit: str = "byte"
    units: str = ""
    multiple: int = 1
    within_dims: bool = True
    sources: tuple[str, ...] = (ACTIVATIONS, FEATURES)
    paper: bool = False
    gives_scores: bool = False
    slow: bool = False
    on_images: bool = True

    def settings(
        self, num_dims: int, *, small: bool = False, num_bytes: Collection[int] | None = None
    ) -> list[int | None]:
        """Return the sizes that are measured on vectors of `num_dims` dimensions; None if there is no choice.

        Args:
          num_dims: How many dimensions the vectors have.
          small: Whether small sizes are measured, too.
          num_bytes: The sizes that are measured if they are in bytes; by default the rival's own.

        Raises:
          ValueError: If it cannot have one of these.
        """
        sizes = self.small_sizes + self.sizes if small else self.sizes
        if num_bytes is not None and self.unit == "byte" and self.sizes:
            sizes = tuple(sorted(num_bytes))
            if odd := [size for size in sizes if size % self.multiple]:
                raise ValueError(f"{self.name} has no code of {odd[0]} bytes: use multiples of {self.multiple}.")
        return [size for size in sizes if size <= num_dims or not self.within_dims] if sizes else [None]

    def setting_text(self, size: int | None) -> str:
        """Return a size as text: "64 bytes", "1 component", or "" if there is no choice."""
        if size is None:
            return ""
        return f"{size:,} {self.unit if size == 1 else self.units or f'{self.unit}s'}"


# In the order of plan, tables and figures.
_IN_ORDER = (
    Rival(
        name="float32",
        title="float32, zlib",
        label="float32",
        text="the numbers as they are, zlib at level 9 on each example.",
        fit=lambda sample, size: codecs.Float32(),
        colour=_PINK,
        marker="X",
        sources=(FEATURES,),  # of activations it is the baseline
    ),
    Rival(
        name="float16",
        title="16 bit, zlib",
        label="zlib, 16 bit",
        text="float16, zlib at level 9 on each example.",
        fit=lambda sample, size: codecs.Float16(),
        colour=_GREY,
        marker="s",
        line=":",
        sources=(ACTIVATIONS,),
        paper=True,
    ),
    Rival(
        name="quantized",
        title="Quantized, zlib",
        label="quantized, zlib",
        text="scaled to the unit range of all numbers and rounded to 2^16, 2^8, 2^4 or 2^2 bins, a byte an entry up to "
        "256, zlib at level 9 on each example.",
        fit=lambda sample, size: codecs.fit_quantized(sample.z, size),
        colour=_PINK,
        marker="s",
        line=":",
        sizes=(2**16, 2**8, 2**4, 2**2),
        unit="bin",
        within_dims=False,
        sources=(ACTIVATIONS,),
        paper=True,
    ),
    Rival(
        name="pca",
        title="PCA",
        label="PCA",
        text="principal components of the full covariance, 4 bytes each, the basis not counted.",
        fit=lambda sample, size: sample.components.first(size),
        colour=_GREY,
        marker="^",
        sizes=(1, 2, 4, 8, 16, 32, 64),
        unit="component",
        sources=(ACTIVATIONS,),
        paper=True,
    ),
    Rival(
        name="float16 parquet",
        title="float16, Parquet, zstd",
        label="float16 Parquet",
        text="float16 in a Parquet column with zstd.",
        fit=lambda sample, size: codecs.Float16Parquet(),
        colour=_GREY,
        marker="X",
        line=":",
    ),
    Rival(
        name="int8",
        title="int8, Parquet, zstd",
        label="int8",
        text="a byte a dimension, each with a range of its own, in a Parquet column with zstd.",
        fit=lambda sample, size: codecs.fit_int8(sample.z),
        colour=_SKY,
        marker="X",
        line=":",
    ),
    Rival(
        name="pq",
        title="Product quantization",
        label="PQ",
        text="by faiss, 256 centroids a byte.",
        fit=lambda sample, size: quantizers.fit_product_quantizer(sample.z, size),
        colour=_SKY,
        marker="<",
        sizes=(8, 16, 32, 64, 128, 256),
        small_sizes=(1, 2, 4),
    ),
    Rival(
        name="pca+pq",
        title="PCA + product quantization",
        label="PCA + PQ",
        text="product quantization after PCA, components dealt to the bytes so that all carry as much.",
        fit=lambda sample, size: sample.quantizer(
            quantizers.fit_product_quantizer, size, quantizers.COMPONENTS_PER_BYTE
        ),
        colour=_GREEN,
        marker=">",
        sizes=(8, 16, 32, 64, 128, 256),
        small_sizes=(1, 2, 4),
    ),
    Rival(
        name="opq",
        title="Optimized product quantization",
        label="OPQ",
        text="product quantization after PCA (8 components a byte) and a rotation that is trained with it, by faiss.",
        fit=lambda sample, size: sample.quantizer(
            quantizers.fit_optimized_product_quantizer, size, quantizers.COMPONENTS_PER_BYTE_OF_SLOW
        ),
        colour=_GREEN,
        marker="^",
        line=":",
        sizes=(32, 64, 128),
        slow=True,
        on_images=False,
    ),
    Rival(
        name="rq",
        title="Residual quantization",
        label="RQ",
        text="after PCA (8 components a byte), 256 centroids, 256 for what these leave, and so on, by faiss, a beam of "
        "two.",
        fit=lambda sample, size: sample.quantizer(
            quantizers.fit_residual_quantizer, size, quantizers.COMPONENTS_PER_BYTE_OF_SLOW
        ),
        colour=_PINK,
        marker="<",
        line=":",
        sizes=(32, 64),
        within_dims=False,
        slow=True,
        on_images=False,
    ),
    Rival(
        name="lsq",
        title="Local-search quantization",
        label="LSQ",
        text="after PCA (8 components a byte), four centroids added up for each part of the components, found by local "
        "search, by faiss.",
        fit=lambda sample, size: sample.quantizer(
            quantizers.fit_local_search_quantizer, size, quantizers.COMPONENTS_PER_BYTE_OF_SLOW
        ),
        colour=_PINK,
        marker=">",
        line=":",
        sizes=(32, 64),
        multiple=quantizers.BYTES_A_SEARCH,
        slow=True,
        on_images=False,
    ),
    Rival(
        name="answers",
        title="The answers: best classes and scores",
        label="the answers",
        text="the best classes of each example by the baseline's head, their scores in 32 levels, coded by the range "
        "coder of vidpress with up to 256 banks.",
        fit=lambda sample, size: answers.fit_answers(sample.z, sample.head, size),
        colour="#8C6D31",
        marker="h",
        sizes=(5, 10, 20),
        unit="class",
        units="classes",
        sources=(ACTIVATIONS,),
        gives_scores=True,
        on_images=False,
    ),
)

RIVALS = {rival.name: rival for rival in _IN_ORDER}


# Names of several rivals at once.
GROUPS: dict[str, Callable[[Rival], bool]] = {
    "all": lambda rival: True,
    "paper": lambda rival: rival.paper,
    "none": lambda rival: False,
}


def fitted_to(source: str, names: Collection[str] = ("all",)) -> list[Rival]:
    """Return the rivals that are fitted to `ACTIVATIONS` or `FEATURES`, of some names or `GROUPS`."""
    return [
        rival
        for rival in RIVALS.values()
        if source in rival.sources
        and any(rival.name == name or (name in GROUPS and GROUPS[name](rival)) for name in names)
    ]
