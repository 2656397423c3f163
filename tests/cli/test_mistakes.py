"""Every mistake gets one clear line and a non-zero exit, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ray_learngene.cli.main import main
from tests.command_line import process

DISTILL = ("distill", "--data", "digits", "--name", "new", "--workers", "0", "--store", "{store}")
SWEEP = ("sweep", "--data", "digits", "--name", "new", "--learngene", "gene", "--store", "{store}")
EXTRACT = ("extract", "--name", "new", "--store", "{store}")
BENCH = (
    *("bench", "--data", "digits", "--name", "new", "--store", "{store}", "--ancestry", "store:ancestries/ten"),
    *("--preset", "nano", "--depths", "2", "--out", "{tmp}/out"),
)
PLAN = ("plan", "--learngene", "gene", "--store", "{store}")
STUDENT = ("plan", "--student", "convnext_tiny")
ANCESTRY = (
    *("ancestry", "--data", "digits", "--name", "new", "--store", "{store}", "--model", "deit_tiny_patch16_224"),
    *("--image-size", "32"),
)
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "sizes of nothing": (("plan", "--depths", "4"), "whose sizes? give learngene (a name in the store), student"),
    "sizes of two": ((*STUDENT, "--preset", "s"), "student and preset both say whose sizes these are: give one"),
    "a sweep without a learngene": ((*STUDENT, "--arms", "sws"), "arms plans a sweep, which is of a learngene"),
    "channels of a learngene": ((*PLAN, "--in-chans", "1"), "a learngene has its own channels"),
    "arguments of a preset": (("plan", "--preset", "s", "--student-args", "{{a: 1}}"), "give student too"),
    "stages that it lacks": ((*STUDENT, "--depths", "3-3-9"), "3-3-9 names 3 stages, convnext_tiny has 4"),
    **{
        f"no such size: {' '.join(size)}": (size, says)
        for size, says in (
            ((*DISTILL, "--alpha", "0", "--student", "deit_tiny_patch16_224", "--depth", "100000"), "to 10000"),
            ((*DISTILL, "--alpha", "0", "--student", "convnext_tiny", "--depth", "3-3-9-100000"), "to 10000"),
            ((*DISTILL, "--alpha", "0", "--student", "deit_tiny_patch16_224", "--width", "1000000000"), "width: "),
            (
                (*DISTILL, "--alpha", "0", "--student", "deit_tiny_patch16_224", "--student-args", "{{depth: 100000}}"),
                "deit_tiny_patch16_224: depth 100,000: a model has 10,000 blocks at most",
            ),
            ((*DISTILL, "--alpha", "0", "--preset", "nano", "--width", "9600000"), "activations of one image take "),
            ((*DISTILL, "--alpha", "0", "--preset", "nano", "--image-size", "16384"), "this machine has "),
            ((*STUDENT, "--depths", "100000"), "convnext_tiny: depth: Input should be less than or equal to 10000"),
            (("plan", "--preset", "s", "--depths", "100000"), "depth: Input should be less than or equal to 10000"),
            ((*PLAN, "--depths", "100000"), "depth: Input should be less than or equal to 10000"),
            ((*SWEEP, "--widths", "96000", "--depths", "50"), "this machine has "),
            (("expand", "gene", "--store", "{store}", "--width", "96000", "--depth", "50"), "this machine has "),
            ((*ANCESTRY, "--model-args", "{{embed_dim: 960000, num_heads: 3}}"), "its weights take "),
            ((*PLAN, "--depths", "1", "--latency-batch", "1000000000000"), "of 1,000,000,000,000 images take"),
            ((*ANCESTRY, "--model-args", "{{depth: 100000}}"), "a model has 10,000 blocks at most"),
        )
    },
    "no depth keyword": (("plan", "--student", "mobilenetv3_small_050"), "timm takes no depth for it"),
    "a depth that int() refuses": (("plan", "--preset", "nano", "--depths", "9" * 5000), "cannot read"),
    "a stage that int() refuses": (("plan", "--preset", "nano", "--depths", f"3-3-{'9' * 5000}"), "cannot read"),
    "DINOv3's own name": (("plan", "--student", "dinov3_vits16"), "patch16_dinov3"),
    "no such command": (("distil",), "unknown command 'distil'; did you mean distill?"),
    "a flag of another name": (("list", "--jsn"), "list: unknown argument '--jsn'; did you mean --json?"),
    "a flag like no other": (("distill", "--amp"), "unknown argument '--amp'; see `learngene distill --help`"),
    "no such flag": (("sweep", "--epoch", "3"), "unknown argument '--epoch'; did you mean --epochs?"),
    "nothing to evaluate": (("evaluate", "--data", "digits"), "--model is required"),
    "a flag without its value": (("sweep", "--epochs"), "expected one argument"),
    "a missing flag": (("distill", "--data", "digits"), "is required: "),
    "not a number": (("sweep", "--epochs", "many"), "--epochs: expected a whole number"),
    "out of range": ((*SWEEP, "--smoothing", "1.5"), "--smoothing: input should be less than 1, got '1.5'"),
    "no such images, and no store yet": (
        ("ancestry", "--data", "{tmp}/none", "--model", "resnet10t", "--name", "x", "--store", "{tmp}/new/store"),
        "no image set",
    ),
    "no such choice": (
        (*DISTILL, "--ancestry", "x", "--preset", "s", "--zero", "4"),
        "--zero: input should be 0, 1, 2 or 3",
    ),
    "labels weighed but off": (
        (*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "nano", "--no-labels", "--alpha", "0.5"),
        "alpha below 1 weighs the labels, but labels are off",
    ),
    "no share of the area": (
        (*SWEEP, "--scale", "-1", "1"),
        "--scale: give the least and the most, above 0 and up to 1",
    ),
    "no aspect ratio": ((*SWEEP, "--ratio", "0", "1"), "--ratio: give the least and the most, above 0, got ["),
    "classes that follow from the images": (
        ("ancestry", "--data", "digits", "--name", "new", "--store", "{store}", "--model-args", "{{num_classes: 0}}"),
        "--model-args: num_classes follows from the classes of --data: leave it out",
    ),
    "no recipe": ((*SWEEP, "--config", "{tmp}/none.yaml"), "none.yaml: No such file"),
    "unknown preset": ((*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "xl"), "unknown preset 'xl'"),
    "image size and patch": (
        (*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "nano", "--image-size", "7"),
        "image size 7 is not divisible by patch size 2: choose 6 or 8",
    ),
    "image size and patch of a sweep": (
        (*PLAN, "--image-size", "7"),
        "7 is not divisible by patch size 2: choose 6 or 8",
    ),
    "unknown method": (
        (*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "nano", "--method", "swiss"),
        "unknown method 'swiss'",
    ),
    "a method without an auxiliary": (
        (*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "nano", "--method", "scratch"),
        "'scratch' has no auxiliary model to distil",
    ),
    "no such ancestry in the store": (
        (*DISTILL, "--ancestry", "store:ancestries/tenn", "--preset", "nano"),
        "no ancestry 'tenn' in",
    ),
    "no such timm model": ((*DISTILL, "--ancestry", "levit_9000", "--preset", "nano"), "timm has no such model"),
    "weights that cannot be fetched": (
        (*DISTILL, "--ancestry", "levit_384.fb_dist_in1k", "--preset", "nano"),
        "the pretrained weights cannot be fetched",
    ),
    "no timm folder": ((*DISTILL, "--ancestry", "local-dir:{tmp}", "--preset", "nano"), "is not a timm model folder"),
    "another number of classes": (
        (*DISTILL, "--ancestry", "store:ancestries/seven", "--preset", "nano"),
        "has 7 classes, --data digits has 10",
    ),
    "other classes": (
        (*DISTILL, "--ancestry", "store:ancestries/named", "--preset", "nano"),
        "calls class 0 'a', --data digits calls it '0'",
    ),
    "no such data": (
        (*DISTILL[:2], "{tmp}/photos", *DISTILL[3:], "--ancestry", "store:ancestries/ten", "--preset", "nano"),
        "photos",
    ),
    "name taken": (
        ("distill", "--data", "digits", "--name", "gene", "--workers", "0", "--store", "{store}")
        + ("--ancestry", "store:ancestries/ten", "--preset", "nano"),
        "the learngene 'gene' is already in",
    ),
    "a depth that the method does not have": (
        (
            *DISTILL,
            "--ancestry",
            "store:ancestries/ten",
            "--preset",
            "nano",
            "--method",
            "sws:stages=2-2",
            "--depth",
            "9",
        ),
        "disagree: leave one out",
    ),
    "a warm-up longer than the run": (
        (*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "nano", "--epochs", "3", "--warmup-epochs", "3"),
        "leaves nothing of 3 epochs",
    ),
    "a cluster that does not answer": (
        (*SWEEP, "--budgets", "params<=60k", "--batch-size", "64", "--address", "127.0.0.1:1"),
        "no Ray cluster answers at 127.0.0.1:1",
    ),
    "a sweep of other settings": (
        ("sweep", "--data", "digits", "--name", "old", "--learngene", "gene", "--store", "{store}")
        + ("--depths", "1", "--batch-size", "64"),
        "the sweep 'old' in",
    ),
    "a layout for another depth": ((*PLAN, "--depths", "6,8", "--arms", "sws:layout=2-1-1-1-1"), "asks for depth 8"),
    "a bad DeepSpeed file": (
        (*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "nano", "--deepspeed", "{tmp}/none.json"),
        "none.json: No such file",
    ),
    "a batch smaller than its micro-batches": (
        (
            *DISTILL,
            "--ancestry",
            "store:ancestries/ten",
            "--preset",
            "nano",
            "--batch-size",
            "2",
            "--accumulation",
            "3",
        ),
        "choose 3 or more",
    ),
    "a batch larger than the data": (
        (*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "nano", "--batch-size", "4096"),
        "lower --batch-size",
    ),
    "a malformed budget": ((*PLAN, "--budgets", "params=3M"), "cannot read 'params=3M'"),
    "an unknown quantity": ((*PLAN, "--budgets", "flops<=3M"), "unknown quantity 'flops'"),
    "an impossible budget": ((*PLAN, "--budgets", "params<=15125"), "params 30.2 k is 2.00x the limit"),
    "malformed depths": ((*PLAN, "--depths", "6-"), "cannot read '6-'"),
    "no such learngene": (("plan", "--learngene", "gone", "--store", "{store}"), "no learngene 'gone' in"),
    "a learngene of another method": (
        (*PLAN, "--arms", "tleg"),
        "the learngene 'gene' was made by 'sws', not by 'tleg'",
    ),
    "a learngene for scratch": ((*PLAN, "--arms", "scratch@gene"), "'scratch' expands no learngene"),
    "an unknown placeholder": ((*PLAN, "--arms", "sws@g-{{name}}"), "may hold {seed}, {depth} and {width} only"),
    "a width that SWS cannot do": ((*PLAN, "--widths", "96"), "SWS cannot change the width"),
    "a width between heads": ((*PLAN, "--widths", "50"), "50 is not a multiple of the head size, 16"),
    "no learning rate search without Ray": ((*SWEEP, "--in-process", "--lr-search", "3"), "lr_search needs Ray Tune"),
    "a teacher of another label set": (
        (*SWEEP, "--ancestry", "store:ancestries/seven"),
        "--ancestry store:ancestries/seven has 7 classes, --data digits has 10",
    ),
    "a method that needs its own auxiliary": (
        (*EXTRACT, "--method", "tleg", "--source", "store:ancestries/ten"),
        "'tleg' needs its own auxiliary model: use `learngene distill`",
    ),
    **{
        f"an image {flag} of {value}": (
            (*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "nano", flag, value),
            says,
        )
        for flag, value, says in (
            (
                "--image-size",
                "256x",
                "--image-size: give pixels as in 224, or height x width as in 256x128, got '256x'",
            ),
            ("--image-size", "0x128", "--image-size: give pixels as in 224, or height x width as in 256x128"),
            ("--image-size", "100000", "--image-size: a side has 16,384 px at most, got '100000'"),
            ("--image-size", "9x8", "image size 9x8 is not divisible by patch size 2: choose 8 or 10x8"),
            ("--in-chans", "0", "--in-chans: image files are read as grey (1) or RGB (3): give one of these"),
            ("--in-chans", "4", "--in-chans: image files are read as grey (1) or RGB (3): give one of these"),
        )
    },
    "a folder that is not named as one": (
        (*DISTILL, "--ancestry", "{store}/../made/conv", "--preset", "nano"),
        "this is a folder; write local-dir:",
    ),
    "no such source": (
        (*EXTRACT, "--method", "wave", "--source", "store:ancestries/gone"),
        "no ancestry 'gone'",
    ),
    "a source without a depth": (
        (*EXTRACT, "--method", "wave", "--source", "local-dir:{store}/../made/conv"),
        "mobilenetv3_small_050: timm takes no depth for it; use it as a teacher",
    ),
    "a start that does not fit": (
        (*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "nano", "--method", "tleg", "--start", "gene"),
        "--start gene: a learngene of method 'sws'",
    ),
    "a benchmark without its reference": (
        (*BENCH, "--arms", "{{sws: {{method: sws}}}}"),
        "reference 'scratch' is none of the arms",
    ),
    "an arm of the benchmark that is no method": (
        (*BENCH, "--arms", "{{scratch: {{method: scratch}}, magic: {{method: magic}}}}"),
        "arm 'magic': unknown method 'magic'",
    ),
    "a benchmark's arm with an unknown key": (
        (*BENCH, "--arms", "{{scratch: {{method: scratch, tuned: full}}}}"),
        "--arms: scratch.tuned: no such setting",
    ),
    "a benchmark's arm without its method": (
        (*BENCH, "--arms", "{{scratch: {{tune: full}}}}"),
        "scratch.method: field",
    ),
    "teaching without a teacher": ((*SWEEP, "--alpha", "0.5"), "alpha says how an ancestry model teaches"),
    "a plan of teaching without a teacher": (
        (*PLAN, "--data", "digits", "--calibrate", "--alpha", "0.5"),
        "alpha says how an ancestry model teaches",
    ),
    "an arm twice": ((*PLAN, "--arms", "sws,sws"), "give each arm once"),
    "an unknown arm": ((*PLAN, "--arms", "sws,magic"), "unknown method 'magic'"),
    "compiled layers of split weights": (
        (*DISTILL, "--ancestry", "store:ancestries/ten", "--preset", "nano", "--zero", "3", "--compile"),
        "use --zero 2",
    ),
    "ASHA without a search": ((*SWEEP, "--asha"), "it needs lr_search"),
    "a name no store can hold": ((*SWEEP[:4], "a/b", *SWEEP[5:]), "'a/b' is not the name of a sweep: write NAME in"),
    "nothing to pull": (("pull", "--store", "{store}", "--max-params", "3M"), "no descendants in"),
    "a malformed limit": (("pull", "--store", "{store}", "--max-params", "many"), "cannot read"),
    "no such artefact": (
        ("pull", "learngenes/gone", "--store", "{store}", "--out", "{tmp}/out"),
        "no learngene 'gone'",
    ),
    "no such kind": (("show", "things/gene", "--store", "{store}"), "write KIND/NAME"),
    "no such sweep": (("show", "sweeps/gone", "--store", "{store}"), "no sweep 'gone'"),
    "no store": (("list", "--store", "{tmp}/no-store"), "there is no store at"),
    "a scheme that is not supported": (("list", "--store", "gopher://x"), "gopher"),
    "an ancestry model of no folder": (
        ("ancestry", "--data", "digits", "--name", "x", "--model", "local-dir:gone", "--store", "{store}"),
        "gone is not a timm model folder",
    ),
    "evaluating what is no model": (("evaluate", "{tmp}", "--data", "digits"), "is not a timm model folder"),
    "an unreadable conversion": (("data", "convert", "--data", "{tmp}/photos", "--out", "{tmp}/shards"), "photos"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    mistake: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, says = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    before = sorted(store.rglob("*"))
    status = main([word.format(store=store, tmp=tmp_path) for word in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == {"a cluster that does not answer": 4, "nothing to pull": 3, "an impossible budget": 3}.get(
        mistake, 2
    )
    assert len(lines) == 1 and lines[0].startswith("learngene: error: ")
    assert says in lines[0]
    assert list(tmp_path.iterdir()) == [] and sorted(store.rglob("*")) == before, "a mistake left something behind"


@pytest.mark.parametrize("mistake", ["no such command", "not a number", "other classes", "no store"])
def test_the_process_says_the_same(mistake: str, store: Path, tmp_path: Path) -> None:
    """What the test above does in one process, for a few as a user does it: no warning of an import, no traceback."""
    arguments, says = MISTAKES[mistake]
    ran = process(*(word.format(store=store, tmp=tmp_path) for word in arguments))
    assert ran.returncode == 2
    assert len(ran.stderr.strip().splitlines()) == 1 and says in ran.stderr


def test_what_is_not_there_is_refused_before_torch_and_ray_are_imported(store: Path, tmp_path: Path) -> None:
    named = ("sweep --data digits --name x --learngene gone", "plan --learngene gone", "expand gone")
    named += (
        "measure --learngene gone",
        "distill --data digits --name x --preset nano --ancestry store:ancestries/gone",
    )
    named += ("sweep --data digits --name x --learngene gene --budgets params=3M", "expand gene --max-params many")
    named += ("plan --learngene gene --budgets latency@pi<=8ms", "expand gene --max-latency 8ms --device pi")
    named += ("sweep --data digits --name x --learngene gene --arms sws,magic", "plan --learngene gene --arms magic@x")
    named += ("sweep --data nothing --name x --learngene gene", "expand gene --depth 1 --data nothing")
    named += ("distill --data digits --name x --preset nano --ancestry resnet18 --method swiss",)
    named += ("distill --data digits --name x --preset nano --ancestry resnet18 --method sws:rules=1",)
    named += ("distill --data digits --name x --student vit_smol --ancestry resnet18", "plan --student vit_smol")
    named += ("ancestry --data digits --name x --model resnet81", "extract --source resnet81.a1_in1k --name x")
    bench = "bench --data digits --name x --preset nano --ancestry resnet18 --depths 2 --reference a"
    named += (f'{bench} --arms {{"a":{{"method":"magic"}}}}', f'{bench} --arms {{"a":{{"method":"wave:fits=1"}}}}')
    named += ("plan --learngene gene --depths 6-", "plan --preset nano --width-factor x", "expand gene --depth 0")
    named += (f"expand gene --depth 1 --out {tmp_path}", f"pull --learngene gene --max-params 99k --out {tmp_path}")
    named += ("extract --source local-dir:no --name x", "measure --learngene gene --widths 50-")
    tracked = "distill --data digits --name x --preset nano --ancestry resnet18 --track"
    named += (f"{tracked} mlflow:file:///tmp/runs", f"{tracked} mlflow:runs", f"{tracked} comet:x")
    lines = [*(f"{one} --store {store}" for one in named), f"export {tmp_path}", f"evaluate {tmp_path} --data digits"]
    conv = store.parent / "made/conv"
    lines += [f"export {conv} --out {tmp_path}", f"export {conv} --overwrite --out {tmp_path}"]
    lines += [f"measure {tmp_path}", f"measure {tmp_path}/gone", f"measure {tmp_path} --runtime torch"]
    said = "import sys; from ray_learngene.cli.main import main; heavy = {'torch', 'ray', 'mlflow'}"
    checks = [f"assert main({one.split()!r}) == 2 and not heavy & set(sys.modules)" for one in lines]
    ran = subprocess.run([sys.executable, "-c", "\n".join([said, *checks])], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stderr.count("learngene: error: ") == len(lines), ran.stderr
