"""Edit neural networks in weight space with equivariant graph metanetworks."""

__version__ = "0.1.0"
