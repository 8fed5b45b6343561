"""The experiments on images: data sets, networks, and how they are trained.

They are the image benchmarks of Singh et al. (ICIP 2020), sections 3.2 and 3.3, and a small one. Networks and schedules
are those of He et al., "Identity Mappings in Deep Residual Networks" (ECCV 2016), whose ResNetV2 those sections use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from vidpress.model.images import files as image_files
from vidpress.model.images.files import ImageNetRecords, LabelledImages
from vidpress.model.training.options import check_not_negative, check_positive

Images = LabelledImages | ImageNetRecords

OPTIMIZERS = ("sgd", "adam")


@dataclasses.dataclass(frozen=True)
class ImageTrainingOptions:
    """How a network is trained on images.

    Attributes:
      epochs: Passes over the training images.
      batch_size: Images in a step.
      optimizer: "sgd", with momentum 0.9, or "adam". The prior always has its own Adam.
      learning_rate: The learning rate at the start.
      decays: The shares of the training after which the learning rates fall to a tenth.
      weight_decay: L2 penalty on kernels, `weight_decay / 2 * sum(kernel**2)`.
      lmbda: Cost of a bit, in nats of the task's loss; 0 trains the baseline without rate and rounding.
      prior_learning_rate: Adam's learning rate for the prior, at the start.
      prior_banks: Banks of the prior in training (`Bottleneck`); the paper has 1.
      spatial: Put the bottleneck on the feature map before global pooling, not on the vector after it.
      mixed_precision: Multiply in bfloat16, which AMX, GPUs and TPUs do faster.
      seed: Seed of the weights, the noise, and the order and augmentation of the data.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    decays: tuple[float, ...]
    weight_decay: float
    lmbda: float = 0.0
    prior_learning_rate: float = 0.01
    prior_banks: int = 16
    spatial: bool = False
    mixed_precision: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self, ("epochs", "batch_size", "learning_rate", "prior_learning_rate", "prior_banks"))
        check_not_negative(self, ("lmbda", "weight_decay", "seed"))
        object.__setattr__(self, "decays", tuple(self.decays))  # which an option gives as a list
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r} must be one of {', '.join(OPTIMIZERS)}.")
        if not all(0 < share < 1 for share in self.decays):
            raise ValueError(f"decays={self.decays} must be shares of the training, each above 0 and below 1.")

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        return {**dataclasses.asdict(self), "decays": list(self.decays)}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A data set and a network for it.

    Attributes:
      name: Its name for `vidpress evaluate --experiment`.
      data_set: The name of the data set.
      files: Which published files its folder holds, for help and errors.
      load: Reads training and test images from a folder.
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


# He et al.: batches of 128, SGD at 0.1, a tenth after 32,000 and a hundredth after 48,000 of 64,000 steps, which are
# 164 epochs; weight decay 0.0001; crops of the image with 4 black pixels around it, mirrored or not.
_CIFAR = ImageTrainingOptions(
    epochs=164, batch_size=128, optimizer="sgd", learning_rate=0.1, decays=(0.5, 0.75), weight_decay=1e-4
)

# He et al.: batches of 256, SGD at 0.1, a tenth after 30 and a hundredth after 60 epochs, here of 90 in all; weight
# decay 0.0001; 224 x 224 crops of random size and aspect ratio; measured on the middle of images whose shorter side is
# 256.
_IMAGENET = ImageTrainingOptions(
    epochs=90, batch_size=256, optimizer="sgd", learning_rate=0.1, decays=(1 / 3, 2 / 3), weight_decay=1e-4
)

_CIFAR_10 = Experiment(
    name="cifar10-resnetv2-20",
    data_set="CIFAR-10",
    files="data_batch_1.bin to data_batch_5.bin, test_batch.bin",
    load=image_files.load_cifar10,
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
            files="train.bin, test.bin",
            load=image_files.load_cifar100,
            num_classes=100,
        ),
        Experiment(
            name="imagenet-resnetv2-50",
            data_set="ImageNet",
            files="train-*-of-* and validation-*-of-*, TFRecords",
            load=image_files.load_imagenet,
            image_shape=(224, 224, 3),
            num_classes=image_files.IMAGENET_CLASSES,
            network="ResNetV2-50",
            map_shape=(7, 7, 2048),
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
                epochs=4, batch_size=128, optimizer="adam", learning_rate=0.002, decays=(0.6, 0.85), weight_decay=1e-4
            ),
            stem_strides=2,
        ),
    )
}
