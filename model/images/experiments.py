"""The experiments on images: data sets, networks, and how they are trained.

They are the image benchmarks of Singh et al. (ICIP 2020), with the settings of sections 3.2, 3.3, C.1 and C.2, and a
small one. The networks are those of He et al., "Identity Mappings in Deep Residual Networks" (ECCV 2016).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from vidpress.model.images import files as image_files
from vidpress.model.images import tables
from vidpress.model.images.files import ImageNetRecords, LabelledImages
from vidpress.model.training.options import check_not_negative, check_positive, check_seed, checked_range

Images = LabelledImages | ImageNetRecords

OPTIMIZERS = ("sgd", "adam")


@dataclasses.dataclass(frozen=True)
class ImageTrainingOptions:
    """How a network is trained on images.

    Attributes:
      batch_size: Images in a step.
      optimizer: "sgd", with momentum 0.9, or "adam". The prior always has its own Adam.
      learning_rate: The learning rate at the start.
      decays: The shares of the training after which the learning rates fall to a tenth. With none, they fall to 0 over
        the whole training, like a cosine from 0 to pi (Loshchilov and Hutter, "SGDR", without restarts).
      weight_decay: L2 penalty on kernels, `weight_decay / 2 * sum(kernel**2)`.
      steps: How many steps there are, or None if `epochs` says it.
      epochs: Passes over the training images, or None if `steps` says how long the training is.
      lmbda: Cost of a bit, in nats of the task's loss; 0 trains the baseline without rate and rounding.
      lmbda_range: The lowest and the highest lmbda of a network for many rates. Then what is trained does not depend on
        `lmbda`, which is only that of the network at the end.
      prior_learning_rate: Adam's learning rate for the prior, at the start.
      prior_banks: Banks of the prior in training (`Bottleneck`); the paper has 1.
      spatial: Put the bottleneck on the feature map before global pooling, not on the vector after it.
      mixed_precision: Multiply in bfloat16, which AMX, GPUs and TPUs do faster.
      seed: Seed of the weights, the noise, and the order and augmentation of the data.
    """

    batch_size: int
    optimizer: str
    learning_rate: float
    decays: tuple[float, ...]
    weight_decay: float
    steps: int | None = None
    epochs: int | None = None
    lmbda: float = 0.0
    lmbda_range: tuple[float, float] | None = None
    prior_learning_rate: float = 0.01
    prior_banks: int = 16
    spatial: bool = False
    mixed_precision: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps={self.steps}, epochs={self.epochs}: give exactly one of the two.")
        length = "steps" if self.epochs is None else "epochs"
        check_positive(self, (length, "batch_size", "learning_rate", "prior_learning_rate", "prior_banks"))
        check_not_negative(self, ("lmbda", "weight_decay", "seed"))
        object.__setattr__(self, "decays", tuple(self.decays))  # which an option gives as a list
        object.__setattr__(self, "lmbda_range", checked_range(self.lmbda, self.lmbda_range))
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r} must be one of {', '.join(OPTIMIZERS)}.")
        if not all(low < high for low, high in itertools.pairwise((0, *self.decays, 1))):
            raise ValueError(f"decays={self.decays} must be ascending shares of the training, above 0 and below 1.")
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A data set and a network for it.

    Attributes:
      name: Its name for `vidpress evaluate --experiment`.
      data_set: The name of the data set.
      files: Which published files its folder holds, for help and errors.
      load: Reads training and test images from a folder, or from a file that holds both.
      image_shape: Height, width and channels of the network's input.
      num_classes: How many classes there are.
      network: "ResNetV2-20" or "ResNetV2-50".
      map_shape: Height, width and channels of the network's last feature map.
      options: How it is trained.
      width: Channels of ResNetV2-20's first stage; the others have twice and four times as many.
      stem_strides: Strides of ResNetV2-20's first convolution: with 2, there is a quarter of the work.
      max_shift: A training image is moved by up to this many pixels in each direction, and filled with black.
      flip: Whether half of the training images are mirrored.
    """

    name: str
    data_set: str
    files: str
    load: Callable[[str], tuple[Images, Images]]
    image_shape: tuple[int, int, int]
    num_classes: int
    network: str
    map_shape: tuple[int, int, int]
    options: ImageTrainingOptions
    width: int = 16
    stem_strides: int = 1
    max_shift: int = 0
    flip: bool = True

    def feature_shape(self, spatial: bool) -> tuple[int, ...]:
        """Return the shape of what the bottleneck rounds: the last feature map, or the vector after pooling it."""
        return self.map_shape if spatial else self.map_shape[-1:]


# Section 3.2: Adam, 128,000 iterations, batches of 128. Section C.1: cosine decay from 0.005, weight decay 0.0001,
# crops of the image with 4 black pixels around it, mirrored or not. Table 1: 156.25 MiB for 10,000 images are 4,096
# floats each, the feature map of 8 x 8 x 64.
_CIFAR = ImageTrainingOptions(
    steps=128_000,
    batch_size=128,
    optimizer="adam",
    learning_rate=0.005,
    decays=(),
    weight_decay=1e-4,
    spatial=True,
)

# Section 3.3: Adam, 300,000 steps, batches of 256. Section C.2: cosine decay from 0.001, weight decay 0.0001, crops of
# 299 x 299 of random size and aspect ratio (Szegedy et al.), measured on the crop of 299 x 299 in the middle. Table 1:
# 38.15 GiB for 50,000 images are 204,800 floats each, the feature map of 10 x 10 x 2048.
_IMAGENET = ImageTrainingOptions(
    steps=300_000,
    batch_size=256,
    optimizer="adam",
    learning_rate=0.001,
    decays=(),
    weight_decay=1e-4,
    spatial=True,
)

_TABLES = "or Parquet files or TFRecords of encoded images and their labels, train and test"

_CIFAR_10 = Experiment(
    name="cifar10-resnetv2-20",
    data_set="CIFAR-10",
    files=f"data_batch_1.bin to data_batch_5.bin, test_batch.bin; {_TABLES}",
    load=tables.load_cifar10,
    image_shape=(32, 32, 3),
    num_classes=10,
    network="ResNetV2-20",
    map_shape=(8, 8, 64),
    options=_CIFAR,
    max_shift=4,
)

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        _CIFAR_10,
        dataclasses.replace(
            _CIFAR_10,
            name="cifar100-resnetv2-20",
            data_set="CIFAR-100",
            files=f"train.bin, test.bin; {_TABLES}",
            load=tables.load_cifar100,
            num_classes=100,
        ),
        Experiment(
            name="imagenet-resnetv2-50",
            data_set="ImageNet",
            files="train-*-of-* and validation-*-of-*, TFRecords",
            load=image_files.load_imagenet,
            image_shape=(299, 299, 3),
            num_classes=image_files.IMAGENET_CLASSES,
            network="ResNetV2-50",
            map_shape=(10, 10, 2048),
            options=_IMAGENET,
        ),
        # Not in the paper: small enough for two cores.
        Experiment(
            name="fashion-mnist-resnetv2-20",
            data_set="Fashion-MNIST",
            files="train-*-ubyte and t10k-*-ubyte, each with or without .gz",
            load=image_files.load_mnist,
            image_shape=(28, 28, 1),
            num_classes=10,
            network="ResNetV2-20",
            map_shape=(4, 4, 64),
            options=ImageTrainingOptions(
                batch_size=128, optimizer="adam", learning_rate=0.002, decays=(0.6, 0.85), weight_decay=1e-4, epochs=4
            ),
            stem_strides=2,
        ),
    )
}
