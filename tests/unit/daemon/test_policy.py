"""What the daemon decides, from values alone."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from daemon import policy
from daemon.clock import Now
from daemon.effects import Ask, Heard, Launch, Leave, Reclaim, Reply, Seen, Stop, Tell
from daemon.ending import Sight
from daemon.policy import begin
from daemon.silence import Silence
from state.contract import Command, CommandKind, Divergence, ExitRecord, MemoryFit, Note, Outcome, Result
from state.machine import Status
from state.pipeline import Pipeline, Resource, StageConfig
from state.snapshot import BackingOff, Failed, Running, RunState, Skipped, StageState


def config(name, needs=(), after=(), resource=Resource.CPU, **more):
    return StageConfig(name=name, module="tests.process.probe", needs=needs, after=after, resource=resource, **more)


def make_run(*stages):
    pipeline = Pipeline(name="p", stages=stages)
    states = tuple(StageState(name=stage.name) for stage in stages)
    return RunState(id="r", pipeline=pipeline, pipeline_path="p.toml", started_at=0.0, stages=states)


def at(seconds, boot="b"):
    return Now(at=1000.0 + seconds, monotonic_s=seconds, boot=boot)


def step(run, seen, now):
    """One step whose facts are told, as the supervisor does it."""
    run, effects = policy.step(run, seen, now)
    return replace(run, untold=()), effects


def dead(run, name, code, *, receipt=False, **more):
    number = len(run.stage(name).attempts)
    record = ExitRecord(code=code, at=1.0, error="E", message="why")
    result = Result(stage=name, attempt=number, at=1.0, summary="fine") if receipt else None
    return Sight(name, number, alive=False, code=code, record=record, receipt=result, **more)


def alive(run, name, **silence):
    return Sight(name, len(run.stage(name).attempts), alive=True, silence=Silence(**silence))


def command(kind, stage=None, identity="c1", at_s=1000.0, now=False):
    return Command(id=identity, kind=kind, stage=stage, at=at_s, now=now)


def launched(effects):
    return [effect.spec.stage for effect in effects if isinstance(effect, Launch)]


def told(effects, kind):
    return [effect.fact for effect in effects if isinstance(effect, Tell) and effect.fact.kind == kind]


def replies(effects):
    return [effect.answer for effect in effects if isinstance(effect, Reply)]


def test_stages_of_different_resources_start_side_by_side():
    """In listed order, one stage a resource; a stage whose need is open waits."""
    run = make_run(
        config("download", resource=Resource.NETWORK),
        config("corpus"),
        config("preprocess", needs=("download",)),
        config("other"),
        config("train", needs=("corpus",), resource=Resource.GPU),
    )
    run, effects = step(run, Seen(), at(0))
    assert launched(effects) == ["download", "corpus"]
    run, effects = step(run, Seen(sights=(alive(run, "download"), dead(run, "corpus", 0, receipt=True))), at(1))
    assert run.stage("corpus").state is Status.SUCCEEDED
    assert launched(effects) == ["other", "train"]


def test_after_waits_for_settled_and_needs_for_success():
    """`after` is met by a failure too; `needs` leaves the stage out."""
    run = make_run(config("a"), config("b", after=("a",)), config("c", needs=("a",)), config("d", needs=("c",)))
    run, _ = step(run, Seen(), at(0))
    run, effects = step(run, Seen(sights=(dead(run, "a", 78),)), at(1))
    assert isinstance(run.stage("a").status, Failed)
    assert launched(effects) == ["b"]
    assert [run.stage(name).state for name in "cd"] == [Status.SKIPPED] * 2
    assert "needs a" in run.stage("c").status.reason


@pytest.mark.parametrize(
    ("code", "status", "outcome"),
    [
        (75, Status.BACKING_OFF, Outcome.TRANSIENT),
        (80, Status.BACKING_OFF, Outcome.OUT_OF_MEMORY),
        (81, Status.BACKING_OFF, Outcome.DIVERGED),
        (82, Status.BACKING_OFF, Outcome.DISK_FULL),
        (83, Status.BACKING_OFF, Outcome.STOPPED),
        (1, Status.BACKING_OFF, Outcome.CRASHED),
        (78, Status.FAILED, Outcome.MISCONFIGURED),
    ],
)
def test_each_outcome_has_its_policy(code, status, outcome):
    """The exit code decides what becomes of the stage, and the attempt remembers it."""
    run, _ = step(make_run(config("a")), Seen(), at(0))
    run, effects = step(replace(run, paused=True), Seen(sights=(dead(run, "a", code),)), at(1))
    assert run.stage("a").state is status
    assert run.stage("a").attempts[-1].outcome is outcome
    assert told(effects, "stage.failed" if status is Status.FAILED else "stage.backed_off")


def test_a_transient_fault_is_retried_for_days():
    """Two hundred refusals of the network fail nothing, and the delay stays capped."""
    run, now = make_run(config("a", resource=Resource.NETWORK)), 0.0
    run, _ = step(run, Seen(), at(now))
    for _ in range(200):
        run, effects = step(run, Seen(sights=(dead(run, "a", 75),)), at(now))
        waiting = run.stage("a").status
        assert isinstance(waiting, BackingOff)
        assert waiting.delay_s <= 900
        assert not launched(effects)
        now += waiting.delay_s
        run, effects = step(run, Seen(), at(now))
        assert launched(effects) == ["a"]


def test_crashes_without_progress_are_bounded_and_progress_starts_the_count_again():
    """Five crashes at one place fail the stage; a new checkpoint in between forgives the earlier ones."""

    def crash(run, now, checkpoint):
        run, _ = step(run, Seen(sights=(dead(run, "a", 1, checkpoint_step=checkpoint),)), at(now))
        return step(run, Seen(), at(now + 500))[0]

    run, _ = step(make_run(config("a")), Seen(), at(0))
    for n, checkpoint in enumerate([None, None, 10, 10, 20, 20, 20, 20]):
        run = crash(run, 1000 * n, checkpoint)
        assert isinstance(run.stage("a").status, Running)
    run = crash(run, 9000, 20)
    run = crash(run, 10000, 20)
    assert isinstance(run.stage("a").status, Failed)
    assert "without a new checkpoint" in run.stage("a").status.reason


def test_out_of_memory_walks_the_ladder_to_its_end():
    """Each OOM gives the next attempt a lower rung; below the last a required stage fails."""
    run, effects = step(make_run(config("a", settings={"effective_batch": 2, "epochs": 1})), Seen(), at(0))
    seen_plans = []
    for n in range(10):
        run, _ = step(run, Seen(sights=(dead(run, "a", 80),)), at(100 * n))
        if run.stage("a").state is Status.FAILED:
            break
        run, effects = step(run, Seen(), at(100 * n + 50))
        seen_plans.append(next(e.spec.batch for e in effects if isinstance(e, Launch)))
    assert [plan.micro_batch for plan in seen_plans] == [1, 1, 1]
    assert seen_plans[-1].paged_optimizer
    assert run.failed_required == ("a",)


def test_a_divergence_lowers_the_rate_skips_the_blamed_and_is_bounded():
    """Half the rate each time and the named examples left out; the fifth has the best weights delivered, the sixth fails."""
    run, _ = step(make_run(config("a")), Seen(), at(0))
    specs = []
    for n in range(6):
        heard = (Heard("a", n + 1, 0, Divergence(at=1.0, step=n, reason="loss nan", examples=(f"s{n % 3}",))),)
        sight = dead(run, "a", 81, checkpoint_step=10 * n + 10)
        run, _ = step(run, Seen(sights=(sight,), heard=heard), at(100 * n))
        run, effects = step(run, Seen(), at(100 * n + 50))
        specs += [e.spec for e in effects if isinstance(e, Launch)]
    assert [spec.learning_rate_scale for spec in specs] == [0.5, 0.25, 0.125, 0.0625, 0.0625]
    assert [spec.deliver_best for spec in specs] == [False] * 4 + [True]
    assert [spec.skip_examples for spec in specs] == [("s0",), ("s0", "s1")] + [("s0", "s1", "s2")] * 3
    assert run.stage("a").state is Status.FAILED
    run, effects = step(run, Seen(commands=(command(CommandKind.RETRY, "a"),)), at(900))
    assert [e.spec.deliver_best for e in effects if isinstance(e, Launch)] == [False]


def interrupted(run, checkpoint_step):
    return Sight("a", len(run.stage("a").attempts), alive=False, checkpoint_step=checkpoint_step)


def test_a_stage_under_which_the_machine_goes_down_again_and_again_gets_less_memory():
    """Every third interruption without a new checkpoint takes a rung; those with progress cost none, and none fails."""
    run, _ = step(make_run(config("a", settings={"effective_batch": 4, "epochs": 1})), Seen(), at(0))
    plans = []
    for n, checkpoint in enumerate([5, 10, 15, 15, 15, 15, 15, 15] + [15] * 20):
        run, effects = step(run, Seen(sights=(interrupted(run, checkpoint),)), at(n))
        plans += [e.spec.batch.micro_batch for e in effects if isinstance(e, Launch)]
    assert plans[:8] == [None, None, None, None, 2, 2, 2, 1]
    assert isinstance(run.stage("a").status, Running)


def test_a_full_disk_waits_for_the_space_that_it_named():
    """Not before it is there, however late; at once when it is; and it never fails a stage."""
    run, _ = step(make_run(config("a")), Seen(), at(0))
    for n in range(20):
        sight = replace_record(dead(run, "a", 82), needed_bytes=5_000_000_000)
        run, effects = step(run, Seen(sights=(sight,), free_bytes=2_000_000_000), at(10_000 * n))
        assert any(isinstance(effect, Reclaim) for effect in effects)
        run, effects = step(run, Seen(free_bytes=4_999_999_999), at(10_000 * n + 9_000))
        assert not launched(effects)
        run, effects = step(run, Seen(free_bytes=5_000_000_000), at(10_000 * n + 9_001))
        assert launched(effects) == ["a"]
    assert run.stage("a").tries == 0


def replace_record(sight, **changes):
    return dataclasses.replace(sight, record=replace(sight.record, **changes))


def test_unknown_never_restarts_anything():
    """A sight that cannot be told changes nothing, for however long."""
    run, _ = step(make_run(config("a")), Seen(), at(0))
    for n in range(50):
        after, effects = step(run, Seen(sights=(Sight("a", 1, alive=None),)), at(n * 1000))
        assert after == run
        assert effects == []


def test_silence_is_ended_and_announced_quiet_is_not():
    """Beyond the limit the attempt is told of once and killed until it is dead; an announced quiet phase stretches the limit."""
    run, _ = step(make_run(config("a", silence_s=100.0)), Seen(), at(0))
    _, effects = step(run, Seen(sights=(alive(run, "a", silent_s=900.0, quiet_s=500.0),)), at(900))
    assert effects == []
    run, effects = step(run, Seen(sights=(alive(run, "a", silent_s=101.0),)), at(901))
    assert [e for e in effects if isinstance(e, Stop)] == [Stop("a", 1, Ask.KILL)]
    run, effects = step(run, Seen(sights=(alive(run, "a", silent_s=102.0),)), at(902))
    assert effects == [Stop("a", 1, Ask.KILL)]
    run, _ = step(run, Seen(sights=(Sight("a", 1, alive=False, code=-9),)), at(903))
    assert run.stage("a").attempts[-1].outcome is Outcome.HUNG
    assert isinstance(run.stage("a").status, BackingOff)


def test_leaving_asks_first_and_kills_after_the_grace():
    """SIGTERM each tick until the grace is over, then SIGKILL; nothing new starts; the stage goes on later."""
    run = make_run(config("a", grace_s=30.0), config("b", resource=Resource.GPU, after=("a",)))
    run, _ = step(run, Seen(), at(0))
    run, effects = step(run, Seen(sights=(alive(run, "a"),), leaving=True), at(1))
    assert effects == [Stop("a", 1, Ask.TERM)]
    _, effects = step(run, Seen(sights=(alive(run, "a"),), leaving=True), at(32))
    assert effects == [Stop("a", 1, Ask.KILL)]
    run, effects = step(run, Seen(sights=(dead(run, "a", 83),), leaving=True), at(33))
    assert isinstance(run.stage("a").status, BackingOff)
    assert not launched(effects)
    run, effects = step(run, Seen(), at(34))
    assert launched(effects) == ["a"]


def test_a_stage_that_finishes_while_told_to_stop_has_succeeded():
    """A receipt counts, whatever was asked."""
    run, _ = step(make_run(config("a")), Seen(), at(0))
    run, _ = step(run, Seen(sights=(alive(run, "a"),), commands=(command(CommandKind.SKIP, "a"),)), at(1))
    run, _ = step(run, Seen(sights=(dead(run, "a", 0, receipt=True),)), at(2))
    assert run.stage("a").state is Status.SUCCEEDED


def test_skip_waits_for_the_safe_point_and_leaves_dependents_out():
    """A running stage is asked to stop and then SKIPPED; who needs it is left out and says why."""
    run = make_run(config("a"), config("b", needs=("a",)))
    run, _ = step(run, Seen(), at(0))
    run, effects = step(run, Seen(sights=(alive(run, "a"),), commands=(command(CommandKind.SKIP, "a"),)), at(1))
    assert replies(effects)[0].ok
    assert Stop("a", 1, Ask.TERM) in effects
    run, _ = step(run, Seen(sights=(dead(run, "a", 83),)), at(2))
    assert [stage.state for stage in run.stages] == [Status.SKIPPED] * 2
    assert run.finished_at is not None


def test_a_command_acts_once():
    """The same id again, as after a crash before its answer was written, changes nothing and is answered."""
    run, _ = step(make_run(config("a")), Seen(), at(0))
    pause = command(CommandKind.PAUSE)
    run, effects = step(run, Seen(sights=(alive(run, "a"),), commands=(pause,)), at(1))
    again, effects = step(run, Seen(sights=(alive(run, "a"),), commands=(pause,)), at(2))
    assert again.paused
    assert replies(effects)[0].text == "already done"


def test_pause_holds_and_resume_goes_on():
    """Paused, a stage checkpoints and waits; nothing starts until resumed."""
    run, _ = step(make_run(config("a")), Seen(), at(0))
    run, _ = step(run, Seen(sights=(alive(run, "a"),), commands=(command(CommandKind.PAUSE),)), at(1))
    run, effects = step(run, Seen(sights=(dead(run, "a", 83),)), at(2))
    assert not launched(effects)
    run, effects = step(run, Seen(commands=(command(CommandKind.RESUME, identity="c2"),)), at(3))
    assert launched(effects) == ["a"]


def test_retry_revives_what_was_left_out():
    """A failed stage and everything left out for it come back; a finished run is open again."""
    run = make_run(config("a"), config("b", needs=("a",)), config("c", needs=("b",)))
    run, _ = step(run, Seen(), at(0))
    run, _ = step(run, Seen(sights=(dead(run, "a", 78),)), at(1))
    assert run.finished_at is not None
    run, effects = step(run, Seen(commands=(command(CommandKind.RETRY, "a"),)), at(2))
    assert launched(effects) == ["a"]
    assert [stage.state for stage in run.stages] == [Status.RUNNING, Status.PENDING, Status.PENDING]
    assert run.finished_at is None


@pytest.mark.parametrize("kind", [CommandKind.SKIP, CommandKind.RETRY])
@pytest.mark.parametrize("name", [None, "nobody"])
def test_a_command_for_no_stage_is_refused(kind, name):
    """The answer lists the stages there are."""
    _, effects = step(make_run(config("a")), Seen(commands=(command(kind, name),)), at(0))
    assert not replies(effects)[0].ok
    assert "there are a" in replies(effects)[0].text


def test_a_stop_from_before_this_start_does_not_end_it():
    """A stop that lay in control/ while no daemon ran must not end the next one."""
    run, _ = begin(make_run(config("a")), at(10))
    _, effects = step(run, Seen(commands=(command(CommandKind.STOP, at_s=1005.0),)), at(11))
    assert not replies(effects)[0].ok
    _, effects = step(run, Seen(commands=(command(CommandKind.STOP, identity="c2", at_s=1010.5),)), at(11))
    assert Leave() in effects


def test_a_deadline_of_another_boot_is_due():
    """The monotonic clock starts anew with the machine: a wait from before a reboot is over."""
    run, _ = step(make_run(config("a")), Seen(), at(5000))
    run, _ = step(run, Seen(sights=(dead(run, "a", 1),)), at(5001))
    _, effects = step(run, Seen(), at(3, boot="b"))
    assert launched(effects) == []
    _, effects = step(run, Seen(), at(3, boot="other"))
    assert launched(effects) == ["a"]


def test_a_short_wait_keeps_the_resource_and_a_wait_for_the_network_does_not():
    """A crash's back-off lets no 26-hour stage in; an unreachable site lets the next one go on."""
    for code, expected in ((1, []), (75, ["b"])):
        run, _ = step(make_run(config("a"), config("b")), Seen(), at(0))
        _, effects = step(run, Seen(sights=(dead(run, "a", code),)), at(1))
        assert launched(effects) == expected


def test_notes_and_fits_are_kept():
    """A note becomes a fact whose id is its place in the file; a fit goes into the next attempt's plan."""
    run, _ = step(make_run(config("a")), Seen(), at(0))
    heard = (
        Heard("a", 1, 120, Note(at=5.0, text="left out 3", level="warning")),
        Heard("a", 1, 180, MemoryFit(at=6.0, model="m", device="cpu", micro_batch=4)),
    )
    run, effects = step(run, Seen(sights=(alive(run, "a"),), heard=heard), at(1))
    assert [fact.id for fact in told(effects, "attempt.noted")] == ["a/001@120", "a/001@180"]
    run, _ = step(run, Seen(sights=(dead(run, "a", 1),)), at(2))
    run, effects = step(run, Seen(), at(99))
    assert next(e.spec.fits for e in effects if isinstance(e, Launch)) == {"m on cpu": 4}


def test_what_was_saved_and_perhaps_not_told_is_told_again():
    """After a crash between saving and telling, or a refused write, the untold facts come again under their ids."""
    run, effects = policy.step(make_run(config("a")), Seen(), at(0))
    facts = [effect.fact for effect in effects if isinstance(effect, Tell)]
    assert list(run.untold) == facts
    for again in (begin(run, at(9))[1], policy.step(run, Seen(), at(9))[1]):
        assert [effect.fact for effect in again if isinstance(effect, Tell)][: len(facts)] == facts


CODES = st.sampled_from([0, 1, 75, 78, 80, 81, 82, 83, -9, -15])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), CODES, st.booleans()), max_size=60))
def test_whatever_happens_the_run_stays_lawful(moves):
    """Any order of endings: one attempt a resource at a time, ids never repeat, settled stages stay, and success has a receipt."""
    run = make_run(config("a"), config("b", needs=("a",)), config("c", after=("a",)), config("d", resource=Resource.GPU))
    ids, now = set(), 0.0
    for which, code, long_wait in moves:
        running = [s for s in run.stages if isinstance(s.status, Running)]
        sights = [alive(run, s.name) for s in running]
        if running:
            victim = running[which % len(running)].name
            sights = [s for s in sights if s.stage != victim] + [dead(run, victim, code, receipt=code == 0)]
        before = run
        now += 1000.0 if long_wait else 1.0
        run, effects = step(run, Seen(sights=tuple(sights)), at(now))
        facts = [e.fact.id for e in effects if isinstance(e, Tell)]
        assert ids.isdisjoint(facts)
        ids.update(facts)
        busy = [run.pipeline.stage(s.name).resource for s in run.stages if isinstance(s.status, Running)]
        assert len(busy) == len(set(busy))
        assert all(a.status == b.status for a, b in zip(before.stages, run.stages, strict=True) if a.settled)
        assert all(s.attempts[-1].outcome is Outcome.SUCCEEDED for s in run.stages if s.state is Status.SUCCEEDED)
        assert all(isinstance(s.status, Skipped) is (s.state is Status.SKIPPED) for s in run.stages)


def test_a_stage_that_stopped_in_good_order_is_told_with_the_reason():
    """Why it waits, and not the sentence that every stage leaves with; how it ended where it had to be killed."""
    run, _ = step(make_run(config("a")), Seen(), at(0))
    paused, _ = step(run, Seen(commands=(command(CommandKind.PAUSE),)), at(1))
    for sight, end in ((dead(paused, "a", 83), ""), (Sight("a", 1, alive=False, code=-9), "; ended by SIGKILL")):
        _, effects = step(paused, Seen(sights=(sight,)), at(2))
        (fact,) = told(effects, "stage.backed_off")
        assert fact.text == f"a is saved and waits: paused by the owner (cli){end}"
    _, effects = step(run, Seen(sights=(dead(run, "a", 83),)), at(1))
    assert told(effects, "stage.backed_off")[0].text == "a is saved and waits: it was stopped, and not by Vigil"
