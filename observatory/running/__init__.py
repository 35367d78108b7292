"""Experiment files become training runs: read, plan, execute, compare."""

from observatory.running.comparison import write_comparison
from observatory.running.conduct import run_experiment
from observatory.running.experiment import Experiment, read_experiment
from observatory.running.plan import PlannedRun, plan_runs

__all__ = ["Experiment", "PlannedRun", "plan_runs", "read_experiment", "run_experiment", "write_comparison"]
