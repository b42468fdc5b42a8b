"""rgpu: rotates the experts of Mixture-of-Experts models between host and GPU, and studies how to do it well."""

__version__ = "0.1.0"
