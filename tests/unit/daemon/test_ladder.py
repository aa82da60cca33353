"""The memory ladder."""

from daemon.ladder import next_rung
from state.contract import BatchPlan


def rungs(settings):
    plan, found = BatchPlan(), []
    while (lower := next_rung(plan, settings)) is not None:
        found.append(lower)
        plan = lower
    return found


def test_a_training_stage_walks_down_and_ends():
    """Micro-batch halves to 1, then activations are recomputed, then the optimizer is paged, then nothing is left."""
    plans = rungs({"effective_batch": 8, "epochs": 3})
    assert [plan.micro_batch for plan in plans] == [4, 2, 1, 1, 1]
    assert [plan.gradient_checkpointing for plan in plans] == [None, None, None, True, True]
    assert plans[-1].paged_optimizer


def test_what_is_set_already_is_no_rung():
    """A stage that checkpoints gradients from the start has one rung less."""
    assert len(rungs({"effective_batch": 1, "epochs": 1, "gradient_checkpointing": True})) == 1


def test_an_evaluation_halves_its_batch():
    """A stage without an effective batch has its evaluation batch halved."""
    assert [plan.eval_batch for plan in rungs({"batch_size": 8})] == [4, 2, 1]
