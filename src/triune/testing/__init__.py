"""Small checkpoints and checks, shipped so that plugins can test themselves as we do."""

from triune.testing.battery import check_method, merge_in_blocks
from triune.testing.toys import perturbed, toy_llama, write_checkpoint

__all__ = ["check_method", "merge_in_blocks", "perturbed", "toy_llama", "write_checkpoint"]
