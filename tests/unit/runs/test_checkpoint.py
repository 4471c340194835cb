"""A checkpoint comes back bit for bit or is refused by name; a crash while writing leaves the one before."""

import errno
import json
import os
import pickle
import random
import stat
import tracemalloc

import numpy as np
import pytest
import safetensors.torch
import torch

from nanocaption.base import tensors
from nanocaption.base.files import link_or_copy
from nanocaption.base.tensors import check_fits
from nanocaption.commands.verify import main
from nanocaption.data.order import seed_of
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import best_files, best_name
from nanocaption.train.state import seed_generators


def make_state(**changes) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "epoch": 3, "step": 120, "best_val_loss": 0.1 + 0.2, "validations_without_gain": 0,
        "model_state_dict": {
            "b.weight": torch.randn(4, 3, generator=generator),
            "a/odd.name": torch.randn(3, 2, generator=generator).T,  # not contiguous
            "half": torch.randn(5, generator=generator).to(torch.bfloat16),
            "count": torch.tensor(7),
            "flags": torch.tensor([True, False]),
            "empty": torch.zeros(0, 3),
            "limits": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        },
        "optimizer_state_dict": {
            "state": {"b.weight": {"step": torch.tensor(120.0), "exp_avg": torch.randn(4, 3, generator=generator)}},
            "param_groups": [{"param_names": ["b.weight"], "lr": 1e-3, "betas": [0.9, 0.98]}],
        },
        "config": {"SEED": 1, "RUN_NAME": None, "ADAM_BETAS": [0.9, 0.98], "TEXT": "é 🐕 \ud800"},
        "config_constants": {"SEED": 1},
        "tokenizer": '{"model": {"vocab": {"a": 0, "Ġdog\\n": 1, "é": 2}}}',
        **changes,
    }  # fmt: skip


def same(a, b) -> bool:
    """Equal in structure and in every bit."""
    if isinstance(a, torch.Tensor):
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, make_state())
    return path


def test_everything_comes_back_bit_for_bit(saved):
    state = make_state()
    loaded = checkpoint.load(saved)
    assert same(loaded, state)
    assert not same(loaded, make_state(step=121))
    changed = make_state()
    changed["model_state_dict"]["limits"][2] = 0.0  # -0.0 is another bit
    assert not same(loaded["model_state_dict"], changed["model_state_dict"])


def test_number_keys_become_text_and_the_file_still_verifies(tmp_path):
    """The id2label of an encoder's config: 10 sorts after 2 as a number and before it as text."""
    state = make_state() | {"labels": {2: "cat", 10: "dog"}}
    checkpoint.save(tmp_path / "a.safetensors", state)
    assert checkpoint.load(tmp_path / "a.safetensors")["labels"] == {"2": "cat", "10": "dog"}


def test_the_same_state_gives_the_same_bytes(tmp_path):
    state = make_state()
    shuffled = dict(reversed(state.items()))
    shuffled["model_state_dict"] = dict(reversed(state["model_state_dict"].items()))
    checkpoint.save(tmp_path / "a", state)
    checkpoint.save(tmp_path / "b", shuffled)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loaded_tensors_do_not_depend_on_the_file(saved):
    loaded = checkpoint.load(saved)
    expected = loaded["model_state_dict"]["b.weight"].clone()
    saved.write_bytes(bytes(saved.stat().st_size))
    assert torch.equal(loaded["model_state_dict"]["b.weight"], expected)
    loaded["model_state_dict"]["b.weight"] += 1  # and may be written to


def test_header_reads_without_tensors(saved):
    header = checkpoint.read_header(saved)
    assert (header["epoch"], header["config"]["SEED"]) == (3, 1)
    assert "model_state_dict" not in header


# --- damage ---


def refusal(path) -> str:
    with pytest.raises(ValueError) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_cut_anywhere_is_refused(saved, tmp_path):
    whole = saved.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in [*range(0, len(whole), len(whole) // 40), 7, 8, 9, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        refusal(cut)
    cut.write_bytes(whole + b"\0")
    refusal(cut)


def test_a_flipped_bit_anywhere_is_refused(saved, tmp_path):
    whole = saved.read_bytes()
    flipped = tmp_path / "flipped.safetensors"
    rng = random.Random(0)
    offsets = [*range(12), *(rng.randrange(len(whole)) for _ in range(150)), *range(len(whole) - 8, len(whole))]
    for offset in offsets:
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << rng.randrange(8)
        flipped.write_bytes(damaged)
        refusal(flipped)
    header = int.from_bytes(whole[:8], "little")
    assert sum(offset > 8 + header for offset in offsets) > 20  # some of them hit the tensors' own bytes
    flipped.write_bytes(whole)
    checkpoint.load(flipped)


def test_zeroed_blocks_are_refused(saved, tmp_path):
    whole = bytearray(saved.read_bytes())
    whole[-64:] = bytes(64)
    (tmp_path / "zeroed").write_bytes(whole)
    assert "does not match its digest" in refusal(tmp_path / "zeroed")


def test_what_is_not_a_checkpoint_is_told_apart(tmp_path):
    assert "There is no checkpoint" in refusal(tmp_path / "missing.safetensors")
    assert "is a folder: name a .safetensors file" in refusal(tmp_path)
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "foreign.safetensors")
    assert "not a nanoCaption checkpoint" in refusal(tmp_path / "foreign.safetensors")
    for metadata in ("no json", "[]", "{}", '{"format_version": 1}'):
        safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "odd", metadata={"nanocaption": metadata})
        assert "damaged" in refusal(tmp_path / "odd")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_run(tmp_path, writer):
    path, trace = tmp_path / "model.safetensors", tmp_path / "it ran"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"model": Bomb(trace)}, path)
    refusal(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))  # it would have shown
    assert trace.exists()


def test_loading_calls_no_unpickler(saved, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    checkpoint.load(saved)


def test_a_future_version_and_missing_parts_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "WITHOUT_TOWER", 9)
        checkpoint.save(path, make_state(written_by="nanoCaption 9"))
    text = refusal(path)
    assert "written by nanoCaption 9 in format version 9" in text and "reads versions 1 to 3" in text
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_REQUIRED", {})
        state = make_state()
        del state["tokenizer"], state["step"]
        checkpoint.save(path, state)
    assert "lacks step, tokenizer" in refusal(path)


# --- writing ---


def test_a_state_that_could_not_be_read_again_is_not_written(saved):
    before = saved.read_bytes()
    for change in ({"note": {1, 2}}, {"note": saved}, {"best_val_loss": float("nan")}):
        with pytest.raises(ValueError):
            checkpoint.save(saved, make_state(**change))
    incomplete = make_state()
    del incomplete["config"]
    with pytest.raises(ValueError, match="lacks config"):
        checkpoint.save(saved, incomplete)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("moment", ["write", "verify", "replace"])
def test_a_crash_while_writing_leaves_the_old_checkpoint_and_no_stray(saved, monkeypatch, moment):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(safetensors.torch, "save_file", fail)
        elif moment == "verify":
            patch.setattr(tensors, "_compare", fail)
        else:
            patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(saved, make_state(epoch=4))
    assert checkpoint.load(saved)["epoch"] == 3
    assert os.listdir(saved.parent) == [saved.name]
    checkpoint.save(saved, make_state(epoch=4))
    assert checkpoint.load(saved)["epoch"] == 4


def test_a_file_that_was_written_wrong_never_takes_the_name(saved, monkeypatch):
    true_save = safetensors.torch.save_file

    def flip_a_bit(tensors, path, metadata):
        true_save(tensors, path, metadata)
        content = bytearray(path.read_bytes())
        content[-3] ^= 4
        path.write_bytes(content)

    monkeypatch.setattr(safetensors.torch, "save_file", flip_a_bit)
    with pytest.raises(ValueError, match="reads back otherwise"):
        checkpoint.save(saved, make_state(epoch=4))
    assert checkpoint.load(saved)["epoch"] == 3


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_mode_follows_the_umask(tmp_path, umask, mode):
    old = os.umask(umask)
    try:
        checkpoint.save(tmp_path / "a", make_state())
        assert os.umask(umask) == umask  # and saving left it alone
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.parametrize("links", [True, False])
def test_a_copy_has_the_content_and_stays_when_the_source_moves_on(saved, monkeypatch, links):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    target = saved.with_name(best_name(3, 1.25))
    target.write_text("an older one")
    link_or_copy(saved, target, sync=True)
    checkpoint.save(saved, make_state(epoch=4))
    assert checkpoint.load(target)["epoch"] == 3
    assert sorted(os.listdir(saved.parent)) == sorted([saved.name, target.name])


def test_best_checkpoints_are_listed_by_their_loss(tmp_path):
    losses = [(1, 10.0), (2, 2.5), (3, 2.25), (10, 2.25), (4, 9.0)]
    names = [best_name(epoch, loss) for epoch, loss in losses]
    assert names[1] == "checkpoint_epoch_2_val_loss_2.5000.safetensors"
    others = ["last.safetensors", "log.jsonl", "checkpoint_epoch_x_val_loss_1.0000.safetensors", f"replaced_{names[0]}"]
    for name in [*names, *others]:
        (tmp_path / name).touch()
    assert [path.name for path in best_files(tmp_path)] == [names[i] for i in (3, 2, 1, 4, 0)]


# --- hostile headers and values ---


def header_and_rest(path) -> tuple[dict, bytes]:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def write_raw(path, header: bytes, rest: bytes, length: int | None = None):
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + rest)


@pytest.mark.parametrize("length", [2**62, 100_000_001, 2**64 - 1])
def test_an_absurd_header_length_is_refused_without_memory(saved, length):
    header, rest = header_and_rest(saved)
    write_raw(saved, json.dumps(header).encode(), rest, length)
    assert "ends within its header" in refusal(saved)


def test_fifty_megabytes_of_json_are_refused_unread(saved):
    size = 50_000_000
    with open(saved, "wb") as file:
        file.write(size.to_bytes(8, "little"))
        file.truncate(8 + size)  # a sparse file
    tracemalloc.start()
    assert "above the limit" in refusal(saved)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_name_that_stands_twice_is_refused_where_json_takes_the_last(saved):
    header, rest = header_and_rest(saved)
    text = json.dumps(header)
    name = '"model/b.weight": ' + json.dumps(header["model/b.weight"])
    assert text.count(name) == 1
    write_raw(saved, text.replace(name, f"{name}, {name}").encode(), rest)
    assert "holds a name twice" in refusal(saved)
    write_raw(saved, text.replace('{\\"', '{\\"epoch\\": 1, \\"', 1).encode(), rest)
    assert "holds a name twice" in refusal(saved)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"step": -1}, "step is -1, which is not a count"),
        ({"step": 10**18}, "not a count"),
        ({"step": "12"}, "step is a str, not a int"),
        ({"step": True}, "step is a bool"),
        ({"epoch": 1.5}, "epoch is a float"),
        ({"step_in_epoch": -3}, "step_in_epoch is -3"),
        ({"nonfinite_in_a_row": None}, "nonfinite_in_a_row is None"),
        ({"config": []}, "config is a list"),
        ({"tokenizer": {}}, "tokenizer is a dict"),
    ],
)
def test_tampered_values_with_a_right_digest_are_refused(tmp_path, monkeypatch, change, message):
    path = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_check_values", lambda path, state: None)
        checkpoint.save(path, make_state(**change))
    assert message in refusal(path)
    with pytest.raises(ValueError):  # nor is such a state written
        checkpoint.save(path, make_state(**change))


def test_an_unknown_tensor_is_refused(tmp_path, monkeypatch):
    tensors, values = checkpoint._pack(make_state())
    tensors["other/x"] = torch.ones(1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_pack", lambda state: (tensors, values))
        checkpoint.save(tmp_path / "a", make_state())
    assert "unknown tensor 'other/x'" in refusal(tmp_path / "a")


def test_the_generators_of_older_files_are_verified_and_left_out(tmp_path, monkeypatch):
    tensors, values = checkpoint._pack(make_state())
    tensors["rng/0/torch"] = torch.arange(5, dtype=torch.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_pack", lambda state: (tensors, values))
        checkpoint.save(tmp_path / "a", make_state())
    assert same(checkpoint.load(tmp_path / "a"), make_state())
    content = (tmp_path / "a").read_bytes()
    assert content.count(bytes(range(5))) == 1
    (tmp_path / "a").write_bytes(content.replace(bytes(range(5)), bytes(range(1, 6))))
    assert "does not match its digest" in refusal(tmp_path / "a")


def test_values_that_are_not_finite_are_named():
    state = make_state()
    with pytest.raises(ValueError, match="file holds values that are not finite, in limits"):
        checkpoint.check_finite(state, "file")
    del state["model_state_dict"]["limits"]
    checkpoint.check_finite(state, "file")
    state["optimizer_state_dict"]["state"]["b.weight"]["exp_avg"][1, 1] = float("inf")
    with pytest.raises(ValueError, match="exp_avg of b.weight"):
        checkpoint.check_finite(state, "file")


# --- use ---


def test_what_does_not_fit_the_model_is_listed():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    state = model.state_dict()
    check_fits(model, state, "x.safetensors")
    wrong = {"0.weight": torch.ones(3, 4), "0.bias": state["0.bias"].double(), "1.bias": state["1.bias"], "new": 1}
    with pytest.raises(ValueError) as caught:
        check_fits(model, {**wrong, "new": torch.ones(1)}, "x.safetensors")
    text = str(caught.value)
    assert text.startswith("x.safetensors does not fit the model") and "\n" not in text
    for part in ("lacks 1.weight", "has new", "0.weight is (3, 4)", "must be (3, 2)", "0.bias is (3,) torch.float64"):
        assert part in text


def draws():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2).tolist()


def test_a_seed_fixes_what_every_generator_gives_whatever_was_drawn_before():
    seed = seed_of(1, 7, 0)
    seed_generators(seed)
    expected = draws()
    random.gauss(0, 1), np.random.randn()  # half of a pair of normal numbers is kept for the next call
    seed_generators(seed)
    assert draws() == expected != draws()
    seed_generators(seed_of(1, 8, 0))
    assert not set(draws()[:4]) & set(expected[:4])


def test_command_line_tells_what_is_inside_and_whether_it_is_whole(saved, capsys):
    main([str(saved)])
    text = capsys.readouterr().out
    for part in ("whole, digest verified", "after 3 epochs and 0 steps: 120 steps in all", "SEED = 1", "of 3 tokens"):
        assert part in text
    saved.write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged|readable"):
        main([str(saved)])
    with pytest.raises(SystemExit, match="usage"):
        main([])
