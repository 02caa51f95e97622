"""An export that takes minutes: a program of PyTorch with open sizes and only dynamic blocks. `make faults` runs it."""

from test_export import assert_program_runs, small


def test_programs_of_torch_with_every_block_dynamic_run_without_dymn(tmp_path):
    assert_program_runs(small(), tmp_path)
