"""What to train: small standard classifiers, sized to the data they are given."""

from tether.models.classifiers import cnn, cross_entropy, mlp, softmax

MODELS = {"softmax": softmax, "mlp": mlp, "cnn": cnn}
"""Every model by the name that configs use: a function of the shape of a sample and the number of classes."""

__all__ = ["MODELS", "cnn", "cross_entropy", "mlp", "softmax"]
