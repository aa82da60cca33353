"""What readings mean: each light, and the command that mends it."""

from pathlib import Path

import pytest

from daemon import config
from daemon.before_leaving import checks, checks_plan
from daemon.before_leaving.checks import Light, NotKnown, Text, Torch, Windows
from daemon.before_leaving.checks_plan import Need
from daemon.host import Disk, Gpu
from state.forecast import Estimate, Forecast, digest_of
from state.needs import Account, Cache, MemoryPredicted, Model, ModelSeen, Part, Where

ROOT = Path(__file__).resolve().parents[4]
GREEN, YELLOW, RED = Light.GREEN, Light.YELLOW, Light.RED
CARD = Gpu(name="A2000", load_percent=1.0, memory_used_bytes=1, memory_total_bytes=16380 << 20, temperature_c=40.0)
CUDA, CPU = Torch("2.13.0", True, "A2000", 16 << 30, True), Torch("2.13.0+cpu", False)
GEMMA = Model("google/translategemma-4b-it", "gemma")


def seattle(*overrides):
    return config.load(ROOT / "pipelines" / "seattle.toml", ["download.url=x", "corpus.source=x", *overrides])


def lights(found):
    return [one.light for one in found]


@pytest.mark.parametrize(
    ("gpus", "torch", "needed", "expected"),
    [
        ((CARD,), CUDA, True, [GREEN, GREEN]),
        ((CARD,), CPU, True, [GREEN, RED]),
        ((), CPU, True, [RED, RED]),
        ((), CPU, False, [YELLOW, YELLOW]),
        (None, NotKnown("late"), True, [RED, YELLOW]),
    ],
)
def test_driver_and_cuda(gpus, torch, needed, expected):
    """Red where a training asks for what only a GPU has; yellow where nobody knows, or the CPU will do."""
    assert lights(checks.gpu(gpus, torch, needed=needed)) == expected


def test_a_torch_for_cpus_beside_a_gpu_names_the_set_up():
    """The commonest fault of an environment is told as such."""
    assert "./vigil setup" in checks.gpu((CARD,), CPU, needed=True)[1].mend


@pytest.mark.parametrize(
    ("where", "needed", "light", "words"),
    [
        (Where.HERE, True, GREEN, ""),
        (Where.TO_FETCH, True, YELLOW, "./vigil fetch p.toml"),
        (Where.GATED, True, RED, "open https://huggingface.co/google/translategemma-4b-it and accept it; then export HF_TOKEN="),
        (Where.GATED, False, YELLOW, "accept"),
        (Where.DENIED, True, RED, "correct the name"),
        (Where.AWAY, True, RED, "when the network is back"),
        (Where.AWAY, False, YELLOW, "when the network is back"),
        (Where.BROKEN, True, RED, "mend"),
        (Where.MADE, True, YELLOW, ""),
    ],
)
def test_a_model_and_what_to_do_about_it(where, needed, light, words):
    """A bonus' model is never red; the licence comes with its link, the token only where there is none."""
    seen = ModelSeen(model=GEMMA, where=where, size_bytes=8_600_000_000, missing_bytes=8_600_000_000)
    found = checks.model(seen, ("train_gemma_4b",), Cache(folder="/c", offline=False, token=False), "p.toml", needed=needed)
    assert found.light is light
    assert words in found.mend
    with_token = checks.model(seen, (), Cache(folder="/c", offline=False, token=True), "p.toml", needed=needed)
    assert "HF_TOKEN" not in with_token.mend


def test_memory_is_red_only_for_what_is_required():
    """What does not fit comes with the setting that helps, and its components; a bonus is yellow."""
    account = Account(parts=(Part("weights", 8 << 30), Part("logits", 9 << 30)), micro_batch=1, host_bytes=3 << 30)
    too_much = MemoryPredicted(stage="train", model="a/b", account=account, fits=False, advice="set max_tokens = 128")
    (required,), (bonus,) = (checks.memory([too_much], names, cuda=True) for names in (set(), {"train"}))
    assert (required.light, bonus.light) == (RED, YELLOW)
    assert required.mend == "set max_tokens = 128"
    assert required.detail[0].split() == ["weights", "8.6", "GB"]
    assert checks.memory([MemoryPredicted(stage="s", model="m", why_not="no config")], set(), cuda=True)[0].light is YELLOW


@pytest.mark.parametrize(("free_gb", "light"), [(100, GREEN), (45, YELLOW), (40, RED)])
def test_a_disk_is_green_with_a_quarter_to_spare(free_gb, light):
    """Against what the plan writes and what stays free; the mending names how much to free."""
    drive = Disk(path="/", free_bytes=free_gb * 10**9, total_bytes=10**12)
    found = checks.disk("disk", drive, (Need("models", 30 * 10**9), Need("chunks", 10 * 10**9)), 5.0)
    assert found.light is light
    assert bool(found.mend) is (light is not GREEN)
    assert found.detail[-1].split() == ["stays", "free", "5.0", "GB"]
    unsized = checks.disk("disk", drive, (), 5.0, unsized=2)
    assert (unsized.light, "besides 2 models of unknown size" in unsized.seen) == (YELLOW, True)


@pytest.mark.parametrize(
    ("drift_s", "light"), [(0.4, GREEN), (-45.0, YELLOW), (4000.0, RED), (None, YELLOW), (NotKnown("late"), YELLOW)]
)
def test_a_clock_that_drifts(drift_s, light):
    """Minutes break certificates; nothing known is yellow."""
    assert checks.clock(drift_s, None).light is light


def test_data_of_the_plan():
    """A text that is missing, an address not set or that lists too little, no general speech, and a corpus without a test set."""
    assert checks.texts("/t", [Text("KJV", 31102), Text("X", fault="x: no text X")]).light is RED
    assert checks.texts("/t", [Text("KJV", 31102)]).light is GREEN
    assert checks.texts("/t", NotKnown("not set")).light is RED
    assert checks.recordings("", 0, 30, 0).light is RED
    assert checks.recordings("u", 12, 30, 0).light is YELLOW
    assert checks.recordings("u", NotKnown("offline"), 30, 0).light is RED
    assert checks.recordings("", NotKnown("offline"), 30, 30).light is GREEN
    assert [checks.no_speech(needed=needed).light for needed in (True, False)] == [RED, YELLOW]
    assert lights(checks.corpus({"train": 242_000, "test": 0})) == [RED]


@pytest.mark.parametrize(
    ("where", "clips", "needed", "light", "words"),
    [
        (Where.HERE, 4000, True, GREEN, ""),
        (Where.HERE, 100, True, YELLOW, ""),
        (Where.TO_FETCH, 0, True, YELLOW, "./vigil fetch p.toml"),
        (Where.GATED, 0, True, RED, "open https://huggingface.co/datasets/owner/speech and accept it; then export HF_TOKEN="),
        (Where.AWAY, 0, False, YELLOW, "when the network is back"),
        (Where.BROKEN, 0, False, RED, "mend what it says"),
    ],
)
def test_general_speech_and_what_to_do_about_it(where, clips, needed, light, words):
    """Few clips are told with how many will be wanted; a data set's licence has its own page; what is broken ends the training even
    where nobody insists on speech."""
    wanted = Model("hub:owner/speech:en", "speech", 3000)
    seen = ModelSeen(model=wanted, where=where, text="x.tsv has no column path", clips=clips)
    found = checks.speech(seen, Cache(folder="/c", offline=False, token=False), "p.toml", needed=needed)
    assert (found.group, found.title, found.light) == ("data", "general speech", light)
    assert words in found.mend
    if where is Where.HERE:
        assert f"{clips:,} clips in hub:owner/speech:en" in found.seen
        assert ("about 3,000 will be wanted" in found.seen) is (light is YELLOW)
    if where is Where.BROKEN:
        assert found.seen == "x.tsv has no column path"


def test_the_models_that_settings_name_beside_the_usual_ones():
    """CometKiwi is nobody's need, those of the audio passes are; general speech is counted by recordings and share.

    What is switched off, or the demo's own, is not looked for.
    """
    named = seattle(
        "evaluate_before.kiwi_model=Unbabel/wmt22-cometkiwi-da",
        "evaluate_before.comet_model=",
        "evaluate_after.comet_model=",
        "evaluate_12b.comet_model=tiny",
        "preprocess.kinds_model=MIT/ast",
        "preprocess.separation_model=htdemucs",
        "preprocess.speaker_model=models/voices",
        "train_whisper.replay_source=hub:owner/speech",
    )
    found = checks_plan.models(named)
    kinds = {model.name: model.kind for model in found}
    assert {name: kinds[name] for name in ("Unbabel/wmt22-cometkiwi-da", "MIT/ast", "htdemucs", "models/voices")} == {
        "Unbabel/wmt22-cometkiwi-da": "comet",
        "MIT/ast": "sounds",
        "htdemucs": "demucs",
        "models/voices": "voices",
    }
    assert [model.kind for model in found].count("comet") == 1
    assert checks_plan.wants_comet(named)
    speech = list(found)[-1]
    assert (speech, found[speech]) == (Model("hub:owner/speech", "speech", round(30 * 240 * 3 / 7)), ("train_whisper",))
    required = {model.name for model in checks_plan.required(named)}
    assert {"MIT/ast", "htdemucs", "models/voices"} < required
    assert "Unbabel/wmt22-cometkiwi-da" not in required
    assert {kinds[asked.model] for asked in checks_plan.memory_asked(named, {})} == {"ctranslate2", "whisper", "marian", "gemma"}
    without = seattle("preprocess.kinds=false", "preprocess.kinds_model=MIT/ast", "train_whisper.replay_share=0")
    assert {"sounds", "speech"}.isdisjoint(model.kind for model in checks_plan.models(without))


ASLEEP = "AC: 0x00000708\nDC: 0x00000384\n"
AWAKE = "AC: 0x00000000\nDC: 0x00000384\n"
IDLE = "[wsl2]\nvmIdleTimeout=-1\n[general]\ninstanceIdleTimeout = -1\n"


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (None, []),
        (NotKnown("interop is off"), [YELLOW]),
        (Windows(IDLE, AWAKE, ("Vigil: Ready",)), [GREEN, GREEN, GREEN]),
        (Windows("", ASLEEP, ()), [YELLOW, RED, YELLOW]),
        (Windows("[wsl2]\nvmIdleTimeout=-1\n", "nothing", ()), [YELLOW, YELLOW, YELLOW]),
    ],
)
def test_what_windows_says(seen, expected):
    """Idle time-outs, sleep on mains in the last but one number whatever the language, the task; nothing where this is no WSL."""
    assert lights(checks.windows(seen)) == expected


@pytest.mark.parametrize(
    ("enabled", "light"), [("enabled", GREEN), ("disabled", YELLOW), ("", YELLOW), (NotKnown("no systemd"), YELLOW)]
)
def test_the_service(enabled, light):
    """Not installed is no fault yet, and comes with the command."""
    found = checks.service(enabled, "active")
    assert found.light is light
    assert bool(found.mend) is (light is YELLOW)


def test_a_rehearsal_counts_only_with_the_settings_of_now():
    """One changed setting, and that stage was not rehearsed."""
    pipeline = seattle()
    kept = {
        stage.name: Estimate(stage=stage.name, digest=digest_of(stage), at=0, source="rehearsal", seconds=1, spread=0.2)
        for stage in pipeline.stages
    }
    assert checks.rehearsal(pipeline, kept, "p").light is GREEN
    changed = checks.rehearsal(seattle("train_marian.epochs=6"), kept, "p")
    assert changed.light is YELLOW
    assert "not train_marian" in changed.seen


def test_the_deadline_against_the_forecast():
    """Yellow with the owner's choice where it does not hold, and where nothing was forecast."""
    late = Forecast(at=0, p50_at=9e8, p80_at=9.1e8, deadline_at=9e8, choice="without the 12B it fits")
    assert checks.deadline("Tue 08:00", late)[0].mend == "without the 12B it fits"
    assert lights(checks.deadline("Tue 08:00", Forecast(at=0, p50_at=1, p80_at=2, deadline_at=3))) == [GREEN]
    assert lights(checks.deadline("Tue 08:00", None)) == [YELLOW]
    assert checks.deadline(None, None) == []


def test_the_models_of_the_seattle_run():
    """Each once, with its stages; what the run trains itself is not among them, and the 12B is nobody's need."""
    pipeline = seattle()
    found = checks_plan.models(pipeline)
    assert [model.name for model in found] == [
        "large-v3",
        "Helsinki-NLP/opus-mt-en-es",
        "google/translategemma-4b-it",
        "google/translategemma-12b-it",
        "Unbabel/wmt22-comet-da",
        "openai/whisper-large-v3-turbo",
    ]
    assert found[GEMMA] == ("evaluate_before", "train_gemma_4b", "evaluate_after")
    needed = {model.name for model in checks_plan.required(pipeline)}
    assert {"google/translategemma-12b-it", "Unbabel/wmt22-comet-da"}.isdisjoint(needed)
    assert len(needed) == 4
    assert checks_plan.wants_gpu(pipeline)
    assert checks_plan.wants_comet(pipeline)
    assert not any(
        model.kind == "comet"
        for model in checks_plan.models(
            seattle("evaluate_before.comet_model=", "evaluate_after.comet_model=", "evaluate_12b.comet_model=")
        )
    )


def test_the_disk_that_the_seattle_run_needs():
    """Models that are missing, recordings and chunks, checkpoints by the account: each a line; the cache's apart."""
    account = Account(
        parts=(), micro_batch=1, host_bytes=1, checkpoint_bytes=900_000_000, weights_bytes=300_000_000, output_bytes=620_000_000
    )
    scored = Account(parts=(), micro_batch=32, host_bytes=1, output_bytes=310_000_000)
    memory = [
        MemoryPredicted(stage="train_marian", model="m", account=account),
        MemoryPredicted(stage="evaluate_before", model="m", account=scored),
        MemoryPredicted(stage="evaluate_before", model="g", account=Account(parts=(), micro_batch=32, host_bytes=1)),
    ]
    seen = [
        ModelSeen(model=GEMMA, where=Where.TO_FETCH, size_bytes=8_600_000_000, missing_bytes=8_000_000_000),
        ModelSeen(model=Model("a", "marian"), where=Where.HERE, size_bytes=300_000_000),
    ]
    found = {one.what: one for one in checks_plan.needs(seattle(), seen, memory)}
    assert found["models and speech to fetch"].size_bytes == 8_000_000_000
    assert [one.what for one in found.values() if one.in_cache] == ["models and speech to fetch"]
    assert found["Sermon download: 30 recordings"].size_bytes == 1_800_000_000
    assert found["MarianMT training: 4 checkpoints"].size_bytes == 3_600_000_000
    assert found["MarianMT training: best weights, output"].size_bytes == 3 * 300_000_000 + 2 * 620_000_000
    assert found["Baseline evaluation: translations"].size_bytes == 50_000_000 + 310_000_000
