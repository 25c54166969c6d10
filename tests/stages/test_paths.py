"""What a recipe names is looked for before anything is done, by --dry-run too: files, models, encoders, storage."""

import json
import subprocess
import sys

import pytest

from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import load
from atlas_ray.stages.paths import check_inputs
from atlas_ray.stages.table import models
from atlas_ray.storage.place import check_place

PLAY = 'name = "r"\nworkers = 0\n[collect]\nlevels = { GoToLocal = 1 }\n'
READ = 'name = "r"\nworkers = 0\n[collect]\nfile = "data.jsonl"\n'
SELECT = "[select]\nselectors = "
TUNE = '[finetune]\narms = [{ selector = "all" }]\nbase = '
SWITCH = 'name = "r"\n[switch]\nlevels = ["GoToLocal"]\ncosts = [0.1]\n'

MISSING = [
    (READ, "collect.file", "data.jsonl: collect.file: there is no such file or folder"),
    (READ.replace("data", "s3://b/data"), "collect.file", "s3://b/data.jsonl: collect.file: is an address"),
    (
        PLAY + SELECT + '["all", "value"]\nrest_of = "all"\nmodel = "./none"\n',
        "select.model",
        "there is no such directory",
    ),
    (PLAY + SELECT + '["all", "perplexity"]\nmodel = "./none"\n', "select.model", "there is no such directory"),
    (
        PLAY + SELECT + '["all"]\nstart_after = ["all"]\nmodel = "./none"\n',
        "select.model",
        "there is no such directory",
    ),
    (
        PLAY + SELECT + '["all", "oracle"]\n[select.oracle]\nmodel = "./none"\n',
        "select.oracle.model",
        "there is no such directory",
    ),
    (PLAY + SELECT + '["all", "mine"]\nfiles = { mine = "no/marks.jsonl" }\n', "select.files.mine", "has no no"),
    (PLAY + SELECT + '["all"]\n' + TUNE + '"/nowhere/model"\n', "finetune.base", "there is no such directory"),
    (SWITCH + 'models = ["tiny-quick", "./none"]\n', "switch.models.1.model", "there is no such directory"),
    (SWITCH + 'encoder = "./none"\n', "switch.encoder", "there is no such directory"),
    (
        PLAY.replace("[collect]", 'storage = "/nowhere/at/all"\n[collect]'),
        "storage",
        "there is no directory /nowhere/at",
    ),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [["--dry-run"], []], ids=["dry run", "run"])
@pytest.mark.parametrize(("text", "field", "said"), MISSING, ids=[row[1] for row in MISSING])
def test_what_is_not_there_is_refused_by_its_field_before_anything_is_written(
    place, capsys, text, field, said, command
):
    (place / "r.toml").write_text(text)
    assert main(["run", "r.toml", *command]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert field in line and said in line, line
    assert captured.out == ""
    assert not (place / "runs").exists()


def test_what_is_there_passes(place, capsys):
    from atlas_ray.models.tiny import build_model, build_tokenizer

    build_model(hidden=16, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(place / "model")
    build_tokenizer().save_pretrained(place / "model")
    (place / "data").mkdir()
    chat = [{"role": "user", "content": "o"}, {"role": "assistant", "content": "Action: x"}]
    (place / "data" / "a.jsonl").write_text(json.dumps({"messages": chat}))
    (place / "marks.jsonl").write_text("")
    text = READ.replace("data.jsonl", "data") + SELECT + '["all", "mine"]\nfiles = { mine = "marks.jsonl" }\n'
    (place / "r.toml").write_text(text + TUNE + '"model"\n')
    assert main(["run", "r.toml", "--dry-run", "--storage", str(place / "kept")]) == 0
    assert json.loads(capsys.readouterr().out)["finetune"]["base"] == "model"


def test_annotations_may_be_made_when_episodes_are_collected(place, capsys):
    (place / "r.toml").write_text(PLAY + SELECT + '["all", "mine"]\nfiles = { mine = "marks.jsonl" }\n')
    assert main(["collect", "r.toml", "--dry-run"]) == 0
    assert main(["select", "r.toml", "--dry-run"]) == 2
    assert "marks.jsonl: select.files.mine: there is no such file" in capsys.readouterr().err


def test_the_file_of_a_recipe_is_looked_into(place, capsys):
    (place / "data.jsonl").write_text("Thought: x\nAction: y\n")
    (place / "r.toml").write_text(READ)
    assert main(["run", "r.toml", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "data.jsonl:1: collect.file: not JSON at column 1" in said and 'collect.on_bad = "skip"' in said


def test_a_name_that_nothing_uses_and_one_on_the_hub_or_a_server_are_not_looked_for(place):
    texts = [
        PLAY + SELECT + '["all"]\nmodel = "./none"\n',
        PLAY + SELECT + '["all", "oracle"]\n[select.oracle]\nmodel = "gpt"\nbase_url = "http://127.0.0.1:1/v1"\n',
        PLAY + SELECT + '["all"]\n' + TUNE + '"HuggingFaceTB/SmolLM2-135M-Instruct"\n',
        SWITCH + 'models = ["tiny-quick", { model = "gpt", base_url = "http://127.0.0.1:1/v1" }]\n',
        SWITCH + 'models = ["tiny-quick", "expert"]\nencoder = "sentence-transformers/all-MiniLM-L6-v2"\n',
    ]
    for number, text in enumerate(texts):
        (place / f"{number}.toml").write_text(text)
        check_inputs(load(place / f"{number}.toml"))


def test_a_model_that_has_to_be_fetched_stops_a_run_and_no_dry_run(place, monkeypatch, capsys):
    monkeypatch.setenv("ATLAS_RAY_CACHE", str(place / "cache"))
    (place / "r.toml").write_text(PLAY + SELECT + '["all"]\n' + TUNE + '"smollm2-135m"\n')
    assert main(["run", "r.toml", "--dry-run"]) == 0
    assert main(["run", "r.toml"]) == 2
    assert "finetune.base: is not on this machine yet: atlas-ray models fetch" in capsys.readouterr().err


def test_an_ensemble_uses_the_models_of_its_members(place):
    (place / "r.toml").write_text(PLAY + SELECT + '["value", "perplexity", "union_value_perplexity"]\n')
    assert dict(models(load(place / "r.toml"))) == {"select.model": "tiny-quick"}


def test_a_trial_of_a_sweep_is_looked_at_too(place, capsys):
    text = PLAY + SELECT + '["all"]\n' + TUNE + '"tiny-quick"\nworkers = 0\n[evaluate]\nheld_in = ["GoToLocal"]\n'
    (place / "r.toml").write_text(text + '[sweep]\nspace = { "finetune.base" = { grid = ["tiny-quick", "./none"] } }\n')
    assert main(["run", "r.toml", "--dry-run"]) == 0
    assert main(["sweep", "r.toml", "--dry-run"]) == 2
    assert "finetune.base: there is no such directory" in capsys.readouterr().err


def test_a_shipped_recipe_may_name_what_another_one_makes_but_a_user_may_not(place, capsys):
    assert main(["run", "switching-express", "--dry-run"]) == 0
    assert "switch.models.0.model" in capsys.readouterr().err
    assert main(["run", "switching-express", "--dry-run", "--switch.models", '["tiny-quick", "./none"]']) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ftp://host/runs", "ftp:// is no storage"),
        ("s3://", "names no bucket"),
        ("gs:///runs", "names no bucket"),
        ("missing/runs", "there is no directory"),
        ("file.txt", "is a file"),
        ("file.txt/runs", "there is no directory"),
        ("x" * 300 + "/runs", "File name too long"),
    ],
)
def test_storage_that_can_be_none(place, given, said):
    (place / "file.txt").write_text("x")
    with pytest.raises(InputError, match=said) as caught:
        check_place(given)
    assert caught.value.field == "storage"


@pytest.mark.parametrize("given", ["kept", "s3://bucket/a%20b#c", "gs://bucket", "a b#c[d]%20é"])
def test_storage_that_can_be(place, given):
    check_place(given)


def test_a_dry_run_imports_neither_torch_nor_ray(place):
    code = (
        "import sys; from atlas_ray.cli import main; code = main(['demo', '--dry-run']);"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'ray', 'transformers', 'pyarrow', 'httpx')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
