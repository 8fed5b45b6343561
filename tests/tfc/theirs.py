"""tensorflow-compression's side: its ops, and priors that it trains."""

import functools

import numpy as np
import tensorflow as tf
import tensorflow_compression as tfc


def compress(tables, z_hat):
    handle = tfc.create_range_encoder(z_hat.shape[:1], tables.lookup)
    handle = tfc.entropy_encode_channel(handle, z_hat - tables.cdf_offset)
    return list(tfc.entropy_encode_finalize(handle).numpy())


def decompress(tables, codes, broadcast_shape=()):
    """z_hat, and whether each string passes the sanity check."""
    handle = tfc.create_range_decoder(codes, tables.lookup)
    handle, symbols = tfc.entropy_decode_channel(handle, [*broadcast_shape, tables.num_dims], np.int32)
    return symbols.numpy() + tables.cdf_offset, tfc.entropy_decode_finalize(handle).numpy()


def activations(channels, num_rows, seed):
    """Sparse ones, of either sign, as a bottleneck learns them: some channels hardly ever, some far from 0."""
    per_channel, rng = np.random.default_rng(0), np.random.default_rng(seed)
    rate = np.minimum(np.exp(per_channel.normal(-2, 2, channels)), 20)
    z = rng.poisson(rate, (num_rows, channels)) * per_channel.choice([-1, 1], channels)
    return (z + rng.normal(0, 0.2, z.shape)).astype(np.float32)


@functools.cache
def trained_prior(channels, num_filters, init_scale, steps):
    """A `NoisyDeepFactorized` after some steps of training by its own rate."""
    tf.random.set_seed(steps)
    prior = tfc.NoisyDeepFactorized(batch_shape=[channels], num_filters=num_filters, init_scale=init_scale)
    model = entropy_model(prior, compression=False)
    optimizer = tf.keras.optimizers.Adam(0.02)

    @tf.function
    def step(z):
        with tf.GradientTape() as tape:
            _, bits = model(z, training=True)
            loss = tf.reduce_mean(bits) / channels
        variables = prior.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    for number in range(steps):
        step(tf.constant(activations(channels, 128, number)))
    return prior


def entropy_model(prior, **options):
    return tfc.ContinuousBatchedEntropyModel(
        prior, **{"coding_rank": 1, "compression": True, "offset_heuristic": False, **options}
    )


def in_float64(prior):
    """The same prior, computed in float64."""
    copy = tfc.NoisyDeepFactorized(batch_shape=prior.batch_shape, num_filters=prior.base.num_filters, dtype=tf.float64)
    for variable, value in weights(prior).items():
        weight_of(copy, variable).assign(value.astype(np.float64))
    return copy


def weight_of(prior, name):
    return next(variable for variable in prior.trainable_variables if variable.name.endswith(f"{name}:0"))


def weights(prior):
    """{"matrix_0": array, ...}."""
    return {variable.name.split("/")[-1].split(":")[0]: variable.numpy() for variable in prior.trainable_variables}


def case(prior, y, precisions=()):
    """What `ours.py` takes."""
    return {
        "num_filters": np.array(prior.base.num_filters),
        "precision": np.array(precisions, int),
        "y": y.astype(prior.dtype.as_numpy_dtype),
        **weights(prior),
    }


def log_prob_and_gradients(prior, y):
    """What `ours.py` gives."""
    inputs = tf.constant(y, prior.dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        log_prob = prior.log_prob(inputs)
    names = weights(prior)
    gradients = tape.gradient(log_prob, [inputs, *(weight_of(prior, name) for name in names)])
    found = {f"gradient_{name}": gradient.numpy() for name, gradient in zip(["y", *names], gradients, strict=True)}
    return {"log_prob": log_prob.numpy(), **found}
